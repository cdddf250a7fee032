from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import oci_image

REPOSITORY = "localhost/causeway/orders"


def archive(path: Path, members: dict[str, Any]) -> str:
    with tarfile.open(path, "w") as target:
        for name, content in members.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return str(path)


def test_image_id_of_an_oci_archive(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "o.tar",
        {
            "blobs/sha256/m": {"config": {"digest": "sha256:cafe"}},
            "index.json": {"manifests": [{"digest": "sha256:m"}]},
        },
    )
    assert oci_image.archive_image_id(path) == "cafe"


def test_image_id_of_a_docker_archive(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.tar", {"manifest.json": [{"Config": "cafe.json"}]})
    assert oci_image.archive_image_id(path) == "cafe"


def test_bad_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(oci_image.ImageError, match=r"missing\.tar does not exist on the controller"):
        oci_image.archive_image_id(str(tmp_path / "missing.tar"))
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    with pytest.raises(oci_image.ImageError, match=r"junk\.tar cannot be read"):
        oci_image.archive_image_id(str(tmp_path / "junk.tar"))
    both = archive(tmp_path / "two.tar", {"manifest.json": [{"Config": "a.json"}, {"Config": "b.json"}]})
    with pytest.raises(oci_image.ImageError, match="holds 2 images"):
        oci_image.archive_image_id(both)
    half = archive(tmp_path / "half.tar", {"index.json": {"manifests": [{"digest": "sha256:gone"}]}})
    with pytest.raises(oci_image.ImageError, match="not a complete image archive"):
        oci_image.archive_image_id(half)


def test_missing_is_by_reference_and_id() -> None:
    present = {f"{REPOSITORY}:1": "aa", f"{REPOSITORY}:2": "bb"}
    wanted = [
        {"reference": f"{REPOSITORY}:1", "image_id": "aa"},
        {"reference": f"{REPOSITORY}:2", "image_id": "other"},
        {"reference": f"{REPOSITORY}:3", "image_id": ""},
    ]
    assert oci_image.missing_images(wanted, present) == [f"{REPOSITORY}:2", f"{REPOSITORY}:3"]


def test_old_versions_go_wanted_and_foreign_ones_stay() -> None:
    history = [f"{REPOSITORY}:{number}" for number in range(1, 6)] + ["localhost/causeway/catalog:1"]
    present = {reference: str(number) for number, reference in enumerate(history)}
    gone, kept = oci_image.prunable(history, [f"{REPOSITORY}:1", f"{REPOSITORY}:5"], present, keep=3)
    assert gone == [f"{REPOSITORY}:2"]
    assert kept == [reference for reference in history if reference != f"{REPOSITORY}:2"]
    assert oci_image.prunable(history, [f"{REPOSITORY}:5"], present, keep=0)[0] == []


def test_the_digest_of_a_tagged_image_is_no_further_version() -> None:
    """Removing it would remove the image that its tag names: seen on a real host."""
    tags = [f"{REPOSITORY}:1", f"{REPOSITORY}:2"]
    present = {**dict(zip(tags, "ab")), f"{REPOSITORY}@sha256:1": "a", f"{REPOSITORY}@sha256:2": "b"}
    history = [f"{REPOSITORY}@sha256:1", f"{REPOSITORY}@sha256:2", *tags]
    assert oci_image.prunable(history, [tags[1]], present, keep=2) == ([], tags)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("localhost/a/b:1", "localhost/a/b"),
        ("host:5000/a", "host:5000/a"),
        ("host:5000/a:1", "host:5000/a"),
        ("host/a@sha256:ff", "host/a"),
    ],
)
def test_repository_of(reference: str, expected: str) -> None:
    assert oci_image.repository_of(reference) == expected


def test_credentials() -> None:
    document = oci_image.auth_document({"registry.example": {"username": "u", "password": "p"}})
    assert document == {"auths": {"registry.example": {"auth": "dTpw"}}}
    with pytest.raises(oci_image.ImageError, match="needs username and password"):
        oci_image.auth_document({"registry.example": {"username": "u"}})

# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys, addresses and arguments of the object storage; signatures; readiness."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import live
import pytest

from ansible_collections.causeway.platform.plugins.module_utils import object_storage as storage
from ansible_collections.causeway.platform.plugins.module_utils import s3

from .conftest import free_ports

ROOT = Path(__file__).resolve().parents[3]
SECRET = "a secret of sixteen characters"
HOSTS = [
    {"host": f"db{n}", "address": f"10.0.{n}.21", "zone": f"north-{z}", "region": "north", "master": n < 4}
    for n, z in enumerate("abca", 1)
]
CLUSTER = {
    "hosts": HOSTS,
    "endpoint": "object-storage.shop.internal",
    "region": "shop",
    "replication": "010",
    "buckets": {"backups": {}},
}
SETTINGS = {
    "data": "/data",
    "run": "/run/s",
    "tls": "/tls",
    "config": "/etc/causeway/object_storage",
    "volume_size": "512",
    "volumes": "0",
    "min_free": "5",
    "chunk_size": "16",
    "election": "3",
}


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_keys_differ_by_identity_and_secret() -> None:
    one, two = storage.keys(SECRET, "admin"), storage.keys(SECRET, "bucket-backups")
    assert len(one["access_key"]) == 20 and len(one["secret_key"]) == 64
    assert len({*one.values(), *two.values(), *storage.keys(SECRET + "x", "admin").values()}) == 6
    with pytest.raises(storage.ObjectStorageError, match="at least 16 characters"):
        storage.keys("short", "admin")


def test_an_identity_of_a_bucket_has_rights_in_it_alone() -> None:
    admin, own = storage.identities(["backups"], SECRET)["identities"]
    assert admin["actions"] == ["Admin"]
    assert own["name"] == "bucket-backups"
    assert own["actions"] == ["Read:backups", "Write:backups", "List:backups", "Tagging:backups"]


def test_every_host_names_the_masters_in_one_order() -> None:
    found = [storage.options(CLUSTER, host["host"], SETTINGS) for host in HOSTS]
    masters = "10.0.1.21:9401.9411,10.0.2.21:9401.9411,10.0.3.21:9401.9411"
    assert {after(one["master"], "-peers") for one in found[:3]} == {masters}
    assert {after(one["filer"], "-master") for one in found} == {masters}
    assert "master" not in found[3]
    # Its own filer comes first.
    assert after(found[1]["s3"], "-filer").startswith("10.0.2.21:9403.9413,")
    assert (after(found[2]["volume"], "-rack"), after(found[2]["volume"], "-dataCenter")) == ("north-c", "north")


def test_no_process_reports_home_or_listens_in_plain_text() -> None:
    found = storage.options(CLUSTER, "db1", SETTINGS)
    assert "-telemetry=false" in found["master"]
    for process, words in found.items():
        assert after(words, "-metricsIp") == "127.0.0.1", process
        assert after(words, "-ip.bind") == "10.0.1.21", process
    assert after(found["s3"], "-cert.file") == "/tls/cert.pem"
    for option in ("-port.iceberg", "-port.lance"):
        assert after(found["s3"], option) == "0"
    words = [word for arguments in found.values() for word in arguments]
    assert not any(SECRET in word or storage.keys(SECRET, "admin")["secret_key"] in word for word in words)


def test_a_single_master_waits_for_no_other() -> None:
    alone = {**CLUSTER, "hosts": HOSTS[:1], "replication": "000"}
    assert after(storage.options(alone, "db1", SETTINGS)["master"], "-peers") == "none"


def test_units_know_where_to_ask() -> None:
    found = storage.environments(CLUSTER, "db4", SETTINGS)
    assert sorted(found) == [f"etc/causeway/object_storage/{one}.env" for one in ("filer", "s3", "volume")]
    assert "ADDRESS=10.0.4.21\nPORT=9400\nGRPC_PORT=9414\n" in found["etc/causeway/object_storage/s3.env"]["content"]
    assert storage.environments(CLUSTER, "elsewhere", SETTINGS) == {}


def test_each_process_is_a_target() -> None:
    assert storage.targets(HOSTS, "db4") == [
        {"job": "object_storage", "address": "10.0.4.21:9405", "labels": {"process": process}}
        for process in ("volume", "filer", "s3")
    ]


def test_the_registry_is_asked_elsewhere_first_on_each_host() -> None:
    assert [storage.rotated(["a", "b", "c"], HOSTS, host["host"])[0] for host in HOSTS] == ["a", "b", "c", "a"]


def test_a_repository_of_the_own_object_storage_gets_endpoint_and_keys() -> None:
    other = {"type": "sftp", "host": "box"}
    own, same = storage.repositories([{"type": "object_storage", "bucket": "backups"}, other], CLUSTER, SECRET)
    assert same == other
    assert (own["type"], own["endpoint"], own["port"], own["own"]) == ("s3", CLUSTER["endpoint"], 9400, True)
    assert own["key_secret"] == storage.keys(SECRET, "bucket-backups")["secret_key"]
    for items, cluster, reason in (
        ([{"type": "object_storage", "bucket": "no"}], CLUSTER, "has no bucket no"),
        ([{"type": "object_storage", "bucket": "backups"}], {}, "has no object storage"),
    ):
        with pytest.raises(storage.ObjectStorageError, match=reason):
            storage.repositories(items, cluster, SECRET)


def test_names_begin_with_the_own_zone() -> None:
    lines = storage.name_lines(CLUSTER, "north-b", "north").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["10.0.2.21", "10.0.1.21", "10.0.3.21", "10.0.4.21"]
    assert storage.name_lines({}) == ""


def test_a_signature_is_that_of_amazons_example() -> None:
    # https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, "GET Bucket Lifecycle"
    endpoint = s3.Endpoint(
        "https://examplebucket.s3.amazonaws.com",
        "us-east-1",
        "AKIAIOSFODNN7EXAMPLE",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    )
    payload = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    headers = {"host": "examplebucket.s3.amazonaws.com", "x-amz-content-sha256": payload}
    headers["x-amz-date"] = "20130524T000000Z"
    found = s3.authorization(
        endpoint, "GET", "/", query="lifecycle=", headers=headers, payload=payload, stamp="20130524T000000Z"
    )
    assert found.endswith("Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543")
    assert "wJalrXUtnFEMI" not in repr(endpoint)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("backups", True),
        ("a-1", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("ab", False),
        ("-abc", False),
        ("abc-", False),
        ("Abc", False),
        ("a_bc", False),
        ("a.bc", False),
        ("xn--abc", False),
        ("abc-s3alias", False),
        ("abc\n", False),
    ],
)
def test_names_of_buckets(name: str, allowed: bool) -> None:
    assert s3.bucket_allowed(name) is allowed


def test_a_rule_of_ours_is_read_back() -> None:
    wanted = s3.Bucket(versioning=True, noncurrent_days=3, multipart_days=2)
    assert s3.lifecycle_of(s3.lifecycle_document(wanted)) == {
        "noncurrent_days": 3,
        "expiration_days": 0,
        "multipart_days": 2,
    }
    assert s3.lifecycle_document(s3.Bucket()) == b""


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    authority = live.Authority("root")
    authority.write(tmp_path / "tls", "spiffe://x.internal/object-storage", ["object-storage.x.internal"])
    return tmp_path / "tls" / "current"


def ready(*words: Any) -> subprocess.CompletedProcess[str]:
    script = ROOT / "roles" / "object_storage" / "files" / "ready.py"
    return subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("maximum", ['max_version = "TLS 1.3"', ""])
def test_a_process_is_ready_only_over_tls(weed: str, tls: Path, tmp_path: Path, maximum: str) -> None:
    """SeaweedFS 4.48 serves gRPC in plain text when its TLS settings contradict each other."""
    port, grpc = free_ports(2)
    text = f'[tls]\nmin_version = "TLS 1.3"\n{maximum}\n[grpc]\nca = "{tls}/ca.pem"\n'
    for part, names in (("grpc", ("master", "client")), ("https", ("master",))):
        for name in names:
            text += f'[{part}.{name}]\ncert = "{tls}/cert.pem"\nkey = "{tls}/key.pem"\nca = "{tls}/ca.pem"\n'
    text += f'[https.client]\nenabled = true\ncert = "{tls}/cert.pem"\nkey = "{tls}/key.pem"\nca = "{tls}/ca.pem"\n'
    (tmp_path / "security.toml").write_text(text)
    words = [weed, "-logtostderr=true", "-config_dir", tmp_path, "master", "-telemetry=false", "-ip=127.0.0.1"]
    words += [f"-port={port}", f"-port.grpc={grpc}", f"-mdir={tmp_path}", "-peers=none"]
    process = subprocess.Popen(list(map(str, words)), stderr=subprocess.DEVNULL)
    try:
        began = time.monotonic()
        done = ready("master", "127.0.0.1", port, grpc, "--tls", tls, "--timeout", 20 if maximum else 4)
        assert done.returncode == (0 if maximum else 1), done.stderr
        if maximum:
            assert time.monotonic() - began < 20
        else:
            assert f"master is not ready: 127.0.0.1:{grpc}:" in done.stderr
    finally:
        process.kill()
        process.wait(30)


def test_a_leader_is_read_from_the_masters_answer() -> None:
    spec = importlib.util.spec_from_file_location("ready", ROOT / "roles" / "object_storage" / "files" / "ready.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    assert (
        found.leader(b'HTTP/1.1 200 OK\r\n\r\n{"IsLeader":true,"Leader":"10.0.1.21:9401.9411"}')
        == "10.0.1.21:9401.9411"
    )
    assert found.leader(b"HTTP/1.1 200 OK\r\n\r\n{}") == found.leader(b"HTTP/1.1 500\r\n\r\nno") == ""

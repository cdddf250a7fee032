"""Object storage and further repositories of backups: docs/design.md section 10."""

from __future__ import annotations

import pytest
import yaml

from ansible_collections.causeway.platform.plugins.module_utils.topology.load import Vaulted
from ansible_collections.causeway.platform.plugins.module_utils.topology.model import Host
from ansible_collections.causeway.platform.plugins.module_utils.topology.object_storage import replication

ZONES = "regions/north/zones"
PLACES = {"north-a": "core1", "north-b": "core2", "north-c": "core3"}


class Secret(str):
    """Text that is written as a !vault value."""


yaml.SafeDumper.add_representer(
    Secret, lambda dumper, text: dumper.represent_scalar("!vault", f"$ANSIBLE_VAULT;1.1;AES256\n{text.encode().hex()}")
)
KEYS = {"key": Secret("id"), "key_secret": Secret("word")}
S3 = {"type": "s3", "bucket": "backups", "endpoint": "s3.example.net", "region": "eu-1", **KEYS}
SFTP = {
    "type": "sftp",
    "host": "box.example.net",
    "user": "backup",
    "private_key": Secret("pem"),
    "known_host": "box.example.net ssh-ed25519 AAAAC3Nz",
}


@pytest.fixture
def described(files):
    """Three hosts in three zones."""
    for zone, host in PLACES.items():
        files.data["platform"]["regions"]["north"]["zones"][zone]["hosts"][host]["components"].append("object_storage")

    def change(storage=None, repositories=None):
        if storage is not None:
            files.set("platform", "object_storage", storage)
        if repositories is not None:
            files.set("platform", "backups", {"repositories": repositories})
        return files

    return change


def test_hosts_alone_are_a_complete_object_storage(described):
    description = described().read()
    assert description.warnings == []
    addresses = {"core1": "10.0.1.21", "core2": "10.0.2.21", "core3": "10.0.3.21"}
    assert description.variables["causeway_object_storage"] == {
        "hosts": [
            {"host": host, "address": addresses[host], "zone": zone, "region": "north", "master": True}
            for zone, host in PLACES.items()
        ],
        "endpoint": "object-storage.shop.internal",
        "region": "shop",
        "replication": "010",
        "buckets": {
            "backups": {
                "versioning": True,
                "noncurrent_days": 14,
                "expiration_days": 0,
                "multipart_days": 7,
                "lock_mode": "none",
                "lock_days": 0,
            }
        },
    }
    assert description.variables["causeway_backups"] == {"repositories": []}
    assert description.groups["object_storage"].hosts == list(PLACES.values())


def test_without_hosts_there_is_none(files):
    variables = files.read().variables
    assert (variables["causeway_object_storage"], variables["causeway_backups"]) == ({}, {"repositories": []})


def test_buckets_as_described(described):
    bucket = {"versioning": True, "noncurrent_days": 3, "lock": {"mode": "governance", "days": 30}}
    found = described({"buckets": {"one": bucket, "two": {"versioning": False, "expiration_days": 90}}}).read()
    buckets = found.variables["causeway_object_storage"]["buckets"]
    assert list(buckets) == ["one", "two"]
    assert (buckets["one"]["lock_mode"], buckets["one"]["lock_days"], buckets["one"]["noncurrent_days"]) == (
        "governance",
        30,
        3,
    )
    assert (buckets["two"]["versioning"], buckets["two"]["noncurrent_days"], buckets["two"]["expiration_days"]) == (
        False,
        0,
        90,
    )


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([("north", "a")], "000"),
        ([("north", "a")] * 2, "001"),
        ([("north", "a")] * 5, "002"),
        ([("north", "a"), ("north", "b")], "010"),
        ([("north", "a"), ("north", "b"), ("north", "c")], "010"),
        ([("north", zone) for zone in "abcd"], "020"),
        ([("north", "a"), ("north", "b"), ("south", "d"), ("south", "e")], "010"),
        ([("north", "a"), ("south", "d")], "100"),
        ([("north", "a"), ("north", "b"), ("south", "d")], "100"),
    ],
)
def test_copies_follow_zones(places, expected):
    hosts = [Host(f"h{n}", "", zone, region, ("object_storage",), {}) for n, (region, zone) in enumerate(places)]
    assert replication(hosts) == expected


def test_masters_are_an_odd_number_over_zones(described):
    files = described({"masters": 3})
    for number in (1, 2):
        entry = {"address": f"10.0.1.{50 + number}", "components": ["object_storage"]}
        files.set("platform", f"{ZONES}/north-a/hosts/store{number}", entry)
    hosts = files.read().variables["causeway_object_storage"]["hosts"]
    assert len(hosts) == 5
    assert sorted(host["zone"] for host in hosts if host["master"]) == ["north-a", "north-b", "north-c"]


def test_repositories_reach_the_hosts_with_their_secrets_sealed(described):
    files = described({}, [{"type": "object_storage"}, {**S3, "ca_file": "roots.pem", "retention": {"full": 4}}, SFTP])
    (files.folder / "roots.pem").write_text("some roots")
    own, s3, sftp = files.read().variables["causeway_backups"]["repositories"]
    assert own == {"type": "object_storage", "bucket": "backups", "path": "/", "retention": {}}
    assert isinstance(s3["key"], Vaulted) and isinstance(s3["key_secret"], Vaulted)
    assert (s3["ca"], s3["retention"], "ca_file" in s3) == ("some roots", {"full": 4}, False)
    assert isinstance(sftp["private_key"], Vaulted)


@pytest.mark.parametrize(
    ("storage", "repositories", "message"),
    [
        ({"masters": 2}, None, "object_storage.masters: unknown value (got 2; allowed: 1, 3, 5, 7)"),
        ({"masters": 5}, None, "object_storage.masters: more than there are hosts (got 5; allowed: 1, 3)"),
        ({"replication": "030"}, None, "object_storage.replication: not valid"),
        ({"replication": "100"}, None, "1 further copies need 2 regions, there are 1"),
        ({"buckets": {"Backups": {}}}, None, 'object_storage.buckets.Backups: bad name (got "Backups"'),
        ({"buckets": {"ab": {}}}, None, "object_storage.buckets.ab: bad name"),
        ({"buckets": {"a.b.c": {}}}, None, "bad name"),
        ({"buckets": {"xn--backups": {}}}, None, "S3 keeps such names for itself"),
        ({"buckets": {"backups": {"noncurrent_days": 0}}}, None, "noncurrent_days: not valid (got 0"),
        ({"buckets": {"backups": {"lock": {"mode": "governance", "days": 0}}}}, None, "lock.days: not valid (got 0"),
        (
            {"buckets": {"b-1": {"versioning": False, "noncurrent_days": 2}}},
            None,
            "without versioning",
        ),
        ({"buckets": {}}, None, "object_storage.buckets: wrong number of entries"),
        ({"bucket": {}}, None, 'object_storage.bucket: unknown key, did you mean "buckets"?'),
        (
            None,
            [{"type": "object_storage", "bucket": "bakups"}],
            'repositories[0].bucket: unknown bucket, did you mean "backups"?',
        ),
        (
            None,
            [{"type": "object_storage", "retention": {"full": 0}}],
            "retention.full: not valid (got 0",
        ),
        (None, [{"type": "ftp"}], "repositories[0].type: unknown value"),
        (
            None,
            [{"type": "object_storage", "user": "me"}],
            "repositories[0].user: a repository of type object_sto",
        ),
        (None, [{"type": "object_storage"}] * 2, "repositories[1]: the place of backups.repositories[0]"),
        (None, [{**S3, "bucket": "Back_ups"}], "repositories[0].bucket: S3 does not allow this name"),
        (
            None,
            [{**S3, "key_secret": "plain"}],
            "repositories[0].key_secret: a secret in plain text",
        ),
        (None, [{**S3, "key": "plain"}], "repositories[0].key: a secret in plain text"),
        (None, [{**SFTP, "private_key": "plain"}], "repositories[0].private_key: a secret in plain text"),
        (None, [{**S3, "ca_file": "none.pem"}], "repositories[0].ca_file: no such file"),
        (None, [{"type": "s3", "bucket": "backups"}], "repositories[0]: the key endpoint is missing"),
        (None, [{**SFTP, "known_host": "box"}], "repositories[0].known_host: not valid"),
    ],
)
def test_what_makes_no_sense_is_refused_with_one_reason(described, storage, repositories, message):
    (problem,) = described(storage, repositories).problems()
    assert message in problem
    assert "plain" not in problem.replace("in plain text", "")


def test_an_even_number_of_masters_is_refused(described):
    files = described()
    files.set("platform", f"{ZONES}/north-a/hosts/store1", {"address": "10.0.1.51", "components": ["object_storage"]})
    (problem,) = files.problems()
    assert "object_storage: an even number of masters adds no safety (got 4 hosts; allowed: 1, 3, 5, 7 hosts" in problem


def test_a_repository_without_its_component_is_refused(files):
    files.set("platform", "backups", {"repositories": [{"type": "object_storage"}]})
    (problem,) = files.problems()
    assert 'backups.repositories[0].type: no host has this component (got "object_storage"' in problem


def test_buckets_without_hosts_are_refused(files):
    files.set("platform", "object_storage", {"buckets": {"backups": {}}})
    (problem,) = files.problems()
    assert "object_storage: no host for it" in problem


def test_its_secret_is_asked_for_where_it_is_needed(described):
    files = described()
    files.set("platform", "secrets", "secrets.yml")
    vault = "!vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  6162\n"
    files.text("secrets", "".join(f"{name}: {vault}" for name in ("registry", "hsm_pin", "hsm_so_pin")))
    (problem,) = files.problems()
    assert "the secret object_storage is missing; there is an object storage: run the playbook" in problem


def test_poor_ideas_are_told(files):
    files.set("platform", f"{ZONES}/north-a/hosts/store1", {"address": "10.0.1.51", "components": ["object_storage"]})
    assert any("a single host holds the only copy" in text for text in files.read().warnings)

# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choosing backups, judging targets and output, and the configuration of hosts."""

from __future__ import annotations

import configparser
from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import pgbackrest as pb
from ansible_collections.causeway.platform.plugins.module_utils import pgbackrest_config as config
from ansible_collections.causeway.platform.plugins.module_utils.pgbackrest_report import report, restore_target

NOON = 1_795_694_400  # 2026-11-26 12:00:00 UTC


def made(hours: float, kind: str = "full", line: int = 1, number: int = 0, repo: int = 1) -> pb.Backup:
    """A backup that ended so many hours after noon, in the segment of that number."""
    stop = int(NOON + hours * 3600)
    wal = f"{line:08X}00000000{number or int(hours * 4) + 1:08X}"
    lsn = f"0/{(number or int(hours * 4) + 1) << 24:X}"
    mark = {"full": "F", "diff": "D", "incr": "I"}[kind]
    return pb.Backup(f"B{hours:g}{mark}{line}", kind, repo, stop - 60, stop, lsn, lsn, wal, wal, 100, 10, 5, False)


def stanza(*backups: pb.Backup, last: str = "0000000100000000000000FF") -> pb.Stanza:
    return pb.Stanza("orders", 0, "ok", list(backups), "000000010000000000000001", last, False, ["17"])


DAYS = stanza(made(0), made(1, "incr"), made(2, "diff"), made(3, "incr"))


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        ("latest", "", ["B3I1"]),
        ("immediate", "", ["B3I1"]),
        ("time", "2026-11-26 12:30:00+00:00", ["B0F1"]),
        ("time", "2026-11-26T15:00:00+01:00", ["B1I1"]),  # the backup of 14:00 UTC had just not ended
        ("time", "2026-11-26T14:00:01Z", ["B2D1"]),
        ("time", "2026-11-26 23:00:00+00", ["B3I1"]),
        ("lsn", "0/1000000", ["B0F1"]),
        ("lsn", "0/8FFFFFF", ["B1I1"]),
        ("lsn", "0/FFFFFFFF", ["B3I1"]),
        ("xid", "4711", ["B3I1", "B2D1", "B1I1", "B0F1"]),
        ("name", "before the release", ["B3I1", "B2D1", "B1I1", "B0F1"]),
    ],
)
def test_the_backup_before_the_target_is_chosen(kind: str, value: str, wanted: list[str]) -> None:
    target = pb.make_target(kind, value)
    assert [one.label for one in pb.candidates(DAYS, target, NOON + 86400)] == wanted


@pytest.mark.parametrize(
    ("arguments", "more", "reason"),
    [
        (("time", "2026-11-28 00:00:00+00:00"), {}, "lies in the future; here it is 2026-11-27 12:00:00"),
        (
            ("time", "2026-11-26 11:00:00+00:00"),
            {},
            "before the first backup; the earliest possible is 2026-11-26 12:00:01",
        ),
        (("lsn", "1/0"), {"last": "000000010000000000000010"}, "lies in the future; the archive ends with"),
        (("lsn", "0/1"), {}, "before the first backup; the earliest possible is 0/1000000"),
        (("latest", "", False, "9"), {}, "timeline 9 is unknown; the archive has 1"),
        (("latest",), {"label": "B7F1"}, "there is no backup B7F1; there are B0F1, B1I1"),
        (("time", "2026-11-26 12:30:00+00:00"), {"label": "B3I1"}, "lies before backup B3I1"),
    ],
)
def test_a_target_out_of_reach_gets_one_reason(arguments: tuple[Any, ...], more: dict[str, str], reason: str) -> None:
    found = replace(DAYS, archive_max=more.get("last", DAYS.archive_max))
    with pytest.raises(pb.TargetError, match=reason.replace(".", "[.]")):
        pb.candidates(found, pb.make_target(*arguments), NOON + 86400, more.get("label", ""))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("moon",), "unknown kind of target"),
        (("time", ""), "needs a value"),
        (("latest", "5"), "takes no value"),
        (("time", "yesterday"), "is no time"),
        (("time", "2026-11-26 12:00:00"), "has no time zone"),
        (("lsn", "12345"), "is no LSN"),
        (("xid", "two"), "is no transaction id"),
        (("xid", "1"), "is no transaction id"),
        (("name", "x" * 64), "is no name of a restore point"),
        (("name", "a", True), "can be stopped at just before"),
        (("immediate", "", True), "can be stopped at just before"),
        (("latest", "", False, "first"), "is no timeline"),
        (("latest", "", False, "0"), "is no timeline"),
    ],
)
def test_a_target_without_meaning_is_refused(arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(pb.TargetError, match=reason):
        pb.make_target(*arguments)


def test_without_a_backup_nothing_can_be_reached() -> None:
    with pytest.raises(pb.TargetError, match="has no backup"):
        pb.candidates(stanza(), pb.make_target("latest"), NOON)


def test_a_branch_is_reached_only_from_backups_before_it_was_left() -> None:
    # Timeline 2 left timeline 1 in segment 6: the backups of segments 9 and 13 belong to what was given up.
    found = stanza(*DAYS.backups, made(5, "full", 2, 20), last="0000000200000000000000FF")
    history = pb.parse_history("1\t0/6000000\tbefore 2026-11-26 13:30:00+00\n\n")
    assert history == {1: 0x6000000}

    def labels(target: pb.Target, **more: Any) -> list[str]:
        return [one.label for one in pb.candidates(found, target, NOON + 86400, ancestors=history, **more)]

    assert labels(pb.make_target("latest")) == ["B5F2"]
    assert labels(pb.make_target("xid", "4711")) == ["B5F2", "B1I1", "B0F1"]
    assert labels(pb.make_target("time", "2026-11-26 16:00:00Z")) == ["B1I1"]
    with pytest.raises(pb.TargetError, match="cannot be reached from backup B3I1"):
        labels(pb.make_target("latest"), label="B3I1")
    alone = pb.candidates(found, pb.make_target("latest", timeline="1"), NOON + 86400)
    assert [one.label for one in alone] == ["B3I1"]


def test_a_time_is_handed_over_in_utc_and_exactly() -> None:
    assert pb.make_target("time", "2026-11-26 13:00:00.123456+01").value == "2026-11-26 12:00:00.123456+00"
    assert pb.make_target("xid", " 4711 ", True).words() == "just before xid 4711"


def test_a_copy_never_archives_and_keeps_its_hands_off_the_queue() -> None:
    program = pb.Program(config="/c.conf", user="postgres")
    target = pb.make_target("xid", "4711", True)
    words = pb.restore_options(program, "orders", made(0), target, pb.Place("/copy", True, True, "/space"))
    assert "--archive-mode=off" in words
    assert "--tablespace-map-all=/space" in words
    command = next(word for word in words if word.startswith("--recovery-option=restore_command="))
    assert "--no-archive-async" in command
    assert "runuser" not in command
    assert {"--type=xid", "--target=4711", "--target-exclusive", "--target-action=promote", "--delta"} <= set(words)
    place = pb.restore_options(program, "orders", made(0), pb.Target(), pb.Place("/data"))
    assert place == ["--pg1-path=/data", "--set=B0F1", "--repo=1", "--type=default", "--target-timeline=latest"]


def test_the_next_backup_is_tried_only_if_the_archive_ended_first() -> None:
    asked = []

    def act(one: pb.Backup) -> dict[str, Any]:
        asked.append(one.label)
        if one.type != "full":
            raise pb.TargetNotReached("too late")
        return {"n": 1}

    tries = [DAYS.backups[2], DAYS.backups[1], DAYS.backups[0]]
    assert pb.attempt(tries, act, pb.make_target("xid", "9"))[0].label == "B0F1"
    assert asked == ["B2D1", "B1I1", "B0F1"]
    with pytest.raises(pb.TargetNotReached, match="xid 9 was not found in the archive, starting from B2D1"):
        pb.attempt(tries[:1], act, pb.make_target("xid", "9"))


@pytest.mark.parametrize(("kind", "age", "reason"), [("incr", 7200, ""), ("full", 7200, "old"), ("incr", 60, "old")])
def test_a_fuller_backup_counts_too(kind: str, age: float, reason: str) -> None:
    found = pb.due([made(0), made(3, "diff")], kind, age, NOON + 4 * 3600)
    assert (reason in found) if reason else not found


def test_verify_is_judged_by_its_words() -> None:
    good = (
        "stanza: orders\nstatus: ok\n  archiveId: 17-1, total WAL checked: 5, total valid WAL: 5\n"
        "    missing: 0, checksum invalid: 0, size invalid: 0, other: 0\n"
        "  backup: B1F, status: valid, total files checked: 937, total valid files: 937\n"
        "    missing: 0, checksum invalid: 0, size invalid: 0, other: 0\n"
    )
    assert pb.parse_verify(good) == {"ok": True, "files": 942, "problems": []}
    bad = good.replace("status: ok", "status: error").replace("status: valid", "status: invalid")
    head, tail = bad.rsplit("checksum invalid: 0", 1)
    found = pb.parse_verify(f"{head}checksum invalid: 2{tail}")
    assert not found["ok"]
    assert "backup: B1F: checksum invalid 2" in found["problems"]
    with pytest.raises(pb.BackrestError, match="said nothing"):
        pb.parse_verify("")


def test_the_reason_is_found_among_the_lines() -> None:
    err = (
        "2026-11-27 12:00:00.000 P00   WARN: unable to check pg2\n"
        "2026-11-27 12:00:00.100 P00  ERROR: [056]: unable to find primary cluster - cannot proceed\n"
        "                                    HINT: are all available clusters in recovery?\n"
    )
    wanted = "[056]: unable to find primary cluster - cannot proceed HINT: are all available clusters in recovery?"
    assert pb.error_of("", err) == wanted


CLUSTERS = {
    "orders": {
        "name": "orders",
        "database": "orders",
        "port": 15110,
        "members": [{"host": name, "address": f"10.0.0.{n}"} for n, name in enumerate(["db1", "db2", "db3"], 1)],
        "backup": {
            "full": "Sun *-*-* 02:00:00",
            "differential": "",
            "incremental": "*-*-* 00/4:30:00",
            "restore_test": "Sun *-*-* 05:00:00",
            "retention": {"full": 2, "differential": 7},
            "checks": ["SELECT true"],
        },
    }
}
S3 = {
    "type": "s3",
    "bucket": "b",
    "endpoint": "s3.example",
    "region": "r",
    "key": "k",
    "key_secret": "s",
    "path": "/pg",
}


def settings(host: str = "db2", **more: Any) -> config.Settings:
    facts = {
        "host": host,
        "address": "10.0.0.9",
        "domain": "shop.internal",
        "port": 8432,
        "user": "postgres",
        "is_repository": False,
        "is_database": True,
        "repository": "10.0.0.9",
        "repository_path": "/repo",
        "tls": "/tls",
        "data": "/data",
        "sockets": "/run/postgresql",
        "spool": "/spool",
        "lock": "/lock",
        "log": "/log",
        "secret": "a secret of sixteen",
        "process_max": 4,
        "compress_type": "zst",
        "compress_level": 3,
        "queue_max": "",
        "standby": "prefer",
        "repositories": [],
        "options": {},
        **more,
    }
    return config.settings_from(facts)


def parsed(found: config.Settings) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(config.configuration(CLUSTERS, found))
    return parser


def test_a_database_host_knows_its_own_member_and_no_passphrase() -> None:
    found = parsed(settings())
    assert dict(found["orders"]) == {
        "pg1-path": "/data/orders",
        "pg1-port": "15110",
        "pg1-socket-path": "/run/postgresql",
        "pg1-user": "postgres",
    }
    assert found["global"]["repo1-host"] == "10.0.0.9"
    assert found["global"]["tls-server-auth"] == "backup.shop.internal=orders"
    assert "archive-push-queue-max" not in found["global:archive-push"]
    assert parsed(settings(queue_max="20GiB"))["global:archive-push"]["archive-push-queue-max"] == "20GiB"


def test_the_repository_host_reaches_all_members() -> None:
    found = parsed(settings("bak1", is_repository=True, is_database=False, user="pgbackrest"))
    assert found["global"]["tls-server-auth"] == "database.shop.internal=orders"
    assert [found["orders"][f"pg{n}-host"] for n in (1, 2, 3)] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert found["orders"]["repo1-cipher-pass"] == config.cipher("a secret of sixteen", "orders")
    assert found["orders"]["repo1-retention-full"] == "2"
    assert "repo1-host" not in found["global"]


def test_a_host_with_both_has_its_own_member_first() -> None:
    found = parsed(settings("db3", is_repository=True))
    assert "pg1-host" not in found["orders"]
    assert [found["orders"][f"pg{n}-host"] for n in (2, 3)] == ["10.0.0.1", "10.0.0.2"]


def test_a_further_repository_is_reached_by_every_host() -> None:
    for one in (settings(repositories=[S3]), settings("bak1", is_repository=True, repositories=[S3])):
        found = parsed(one)
        assert found["global"]["repo2-s3-key-secret"] == "s"
        assert found["orders"]["repo2-cipher-type"] == "aes-256-cbc"
        assert found["orders"]["repo2-retention-full"] == "2"


def test_each_repository_has_a_passphrase_of_its_own() -> None:
    other = {**S3, "bucket": "others"}
    found = parsed(settings("bak1", is_repository=True, repositories=[S3, other]))["orders"]
    words = [found[f"repo{number}-cipher-pass"] for number in (1, 2, 3)]
    assert len(set(words)) == 3
    # It goes with the place, not with the number.
    swapped = parsed(settings("bak1", is_repository=True, repositories=[other, S3]))["orders"]
    assert [swapped[f"repo{number}-cipher-pass"] for number in (1, 3, 2)] == words


def test_certificates_of_s3_are_verified() -> None:
    found = parsed(settings(repositories=[{**S3, "own": True}, {**S3, "bucket": "b2", "ca": "roots"}]))["global"]
    assert (found["repo2-storage-verify-tls"], found["repo3-storage-verify-tls"]) == ("y", "y")
    assert found["repo2-storage-ca-file"] == found["tls-server-ca-file"]
    assert found["repo3-storage-ca-file"] == "/etc/pgbackrest/repo3.ca.pem"
    files = config.key_files([S3, {**S3, "ca": "roots"}], "postgres")
    assert files == {"etc/pgbackrest/repo3.ca.pem": {"content": "roots\n", "group": "postgres", "mode": "0640"}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"retention": {"full": 0, "differential": 7}}, "orders: backup.retention.full is 0; it is a number from 1"),
        ({"retention": {"full": 2, "differential": True}}, "backup.retention.differential is True"),
    ],
)
def test_a_retention_that_keeps_nothing_is_refused(change: dict[str, Any], reason: str) -> None:
    one = {**CLUSTERS["orders"], "backup": {**CLUSTERS["orders"]["backup"], **change}}  # type: ignore[dict-item]
    assert any(reason in found for found in config.problems({"orders": one}, [], "a secret of sixteen", {}))


def test_all_problems_come_at_once() -> None:
    hosts = {"a": {"components": ["backup"]}, "b": {"components": ["backup"]}}
    found = config.problems(CLUSTERS, [{"type": "tape"}, {"type": "s3", "bucket": "b"}], "short", hosts)
    assert found == [
        "causeway_secrets.backup must have at least 16 characters",
        "backup_repositories[0].type: 'tape' is unknown; allowed: s3, sftp",
        "backup_repositories[1]: missing for s3: endpoint, region, key, key_secret",
        "exactly one host has component backup, found 2",
    ]
    assert not config.problems(CLUSTERS, [S3], "a secret of sixteen", {"a": {"components": ["backup"]}})


def test_an_empty_schedule_is_no_timer() -> None:
    found = {path.rsplit("/", 1)[1] for path in config.schedules(CLUSTERS, "")}
    assert {name for name in found if name.endswith(".timer")} == {
        f"causeway-backup-{kind}@orders.timer" for kind in ("full", "incremental", "restore-test")
    }
    assert "causeway-backup-verify@.service" in found


def test_one_target_at_a_time() -> None:
    assert restore_target({"xid": "4711", "before": True, "time": ""}) == {
        "target_type": "xid",
        "target": "4711",
        "target_exclusive": True,
        "target_timeline": "latest",
        "set": "",
    }
    assert restore_target({})["target_type"] == "latest"
    with pytest.raises(ValueError, match="restore_time, restore_immediate are given"):
        restore_target({"time": "x", "immediate": True})


def test_a_report_leaves_out_what_is_not_known() -> None:
    found = report("database_restore", "orders", {"member": "db1", "set": "", "seconds": {"restore": 1.5}})
    assert found["text"] == ["database_restore of orders: done", "member: db1", "seconds: restore 1.5"]
    assert report("x", "orders", {}, failure="no way")["text"] == ["x of orders: failed", "reason: no way"]

# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may connect to a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.causeway.platform.plugins.module_utils.postgresql import hba
from ansible_collections.causeway.platform.plugins.module_utils.postgresql.hba import HbaError

CLUSTER: dict[str, Any] = {
    "database": "orders",
    "members": [{"host": "a", "address": "10.0.0.1"}, {"host": "b", "address": "10.0.0.2"}],
}


def matching(database: str, user: str, address: str = "", tls: bool = True) -> str:
    """The method of the first line that fits, as PostgreSQL looks for it; empty if none does."""
    for line in hba.lines(CLUSTER):
        kind, databases, users, *rest = line.split(" ")
        source = rest.pop(0).partition("/")[0] if kind != "local" else ""
        fits = (kind == "local") == (address == "") and (kind != "hostssl" or tls) and source == address
        named = databases == database or (databases == "all" and database != "replication")
        if fits and named and user in users.split(","):
            return " ".join(rest)
    return ""


REMOTE = "scram-sha-256 clientcert=verify-ca"


@pytest.mark.parametrize(
    ("database", "user", "address", "method"),
    [
        ("orders", "postgres", "", "peer"),
        ("replication", "replicator", "", "scram-sha-256"),
        ("orders", "orders", "", "scram-sha-256"),
        ("orders", "pgbouncer", "", "scram-sha-256"),
        ("postgres", "monitor", "", "scram-sha-256"),
        ("replication", "replicator", "10.0.0.2", REMOTE),
        ("postgres", "rewind", "10.0.0.1", REMOTE),
        ("orders", "orders", "10.0.0.2", REMOTE),
        ("orders", "orders_owner", "10.0.0.2", REMOTE),
        ("orders", "pgbouncer", "127.0.0.1", REMOTE),
        # Nobody else, nowhere else.
        ("orders", "orders", "10.0.0.9", ""),
        ("orders", "orders_owner", "10.0.0.9", ""),
        ("orders", "orders", "10.0.0.3", ""),
        ("orders", "postgres", "10.0.0.1", ""),
        ("postgres", "postgres", "127.0.0.1", ""),
        ("postgres", "orders", "", ""),
        ("postgres", "pgbouncer", "10.0.0.1", ""),
        ("replication", "orders_owner", "10.0.0.1", ""),
        ("orders", "replicator", "10.0.0.1", ""),
    ],
)
def test_who_may_connect(database, user, address, method):
    assert matching(database, user, address) == method


def test_nothing_without_tls_or_password():
    lines = hba.lines(CLUSTER)
    assert all(matching("orders", user, "10.0.0.1", tls=False) == "" for user in ("orders", "orders_owner"))
    for line in lines:
        words = line.split()
        assert words[0] in ("local", "hostssl")
        assert not {"trust", "password", "md5", "ident"} & set(words)
        if words[0] == "hostssl":
            assert words[-1] == "clientcert=verify-ca"
            assert words[3].endswith("/32")


def test_a_member_named_twice_has_no_line_twice():
    lines = hba.lines({**CLUSTER, "members": CLUSTER["members"] + CLUSTER["members"][:1]})
    assert len(lines) == len(set(lines)) == len(hba.lines(CLUSTER))


def test_ipv6():
    lines = hba.lines({"database": "x", "members": [{"address": "2001:db8::1"}]})
    assert f"hostssl replication replicator 2001:db8::1/128 {REMOTE}" in lines


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": []}, "the key members is missing"),
        ({"database": ""}, "the key database is missing"),
        ({"members": [{"host": "a"}]}, "None is no IP address"),
        ({"members": [{"address": "all"}]}, "'all' is no IP address"),
        ({"members": [{"address": "0.0.0.0/0"}]}, "'0.0.0.0/0' is no IP address"),
    ],
)
def test_half_a_cluster_is_refused(change, words):
    with pytest.raises(HbaError, match=words):
        hba.lines({**CLUSTER, **change})

# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against a real etcd with mutual TLS and authentication."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.causeway.platform.plugins.module_utils import etcd, registry

from .conftest import SECRET, Authority, Server, free_port

pytestmark = pytest.mark.usefixtures("server")


def test_keys_round_trip(client: etcd.EtcdClient, keys: registry.Keys) -> None:
    first = client.put(keys.of("a"), "grün")
    second = client.put(keys.of("b"), b"\x00\xff")
    assert second == first + 1
    found = client.get(keys.of("a"))
    assert found is not None
    assert (found.text(), found.mod_revision, found.version, found.lease) == ("grün", first, 1, 0)
    kvs, revision = client.range(keys.prefix)
    assert [kv.value for kv in kvs] == ["grün".encode(), b"\x00\xff"]
    assert revision >= second
    assert client.range(keys.prefix, keys_only=True)[0][0].value == b""
    assert client.get(keys.of("none")) is None
    assert (client.delete(keys.of("a")), client.delete(keys.of("a"))) == (1, 0)
    assert client.delete_prefix(keys.prefix) == 1


def test_an_empty_prefix_is_not_deleted(client: etcd.EtcdClient) -> None:
    with pytest.raises(etcd.EtcdError, match="every key"):
        client.delete_prefix("")


@pytest.mark.parametrize(
    ("prefix", "end"), [("/a/", b"/a0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), ("", b"\0")], ids=str
)
def test_prefix_end(prefix: etcd.Value, end: bytes) -> None:
    assert etcd.prefix_end(prefix) == end


def test_swap_writes_once(client: etcd.EtcdClient, keys: registry.Keys) -> None:
    key = keys.of("s")
    revision = client.swap(key, "1", 0)
    with pytest.raises(etcd.CompareFailed, match=f"is at revision {revision}, revision 0") as caught:
        client.swap(key, "2", 0)
    assert caught.value.current is not None
    assert caught.value.current.text() == "1"
    assert client.swap(key, "2", revision) > revision
    with pytest.raises(etcd.CompareFailed, match="does not exist"):
        client.swap(keys.of("other"), "2", 5)


def test_transaction_takes_one_branch(client: etcd.EtcdClient, keys: registry.Keys) -> None:
    key = keys.of("x")
    result = client.txn([etcd.compare_exists(key)], [etcd.op_delete(key)], [etcd.op_put(key, "new"), etcd.op_get(key)])
    assert not result.succeeded
    assert [kv.text() for kv in result.kvs(1)] == ["new"]
    assert client.txn([etcd.compare_value(key, "new")], [etcd.op_delete(key)]).succeeded
    assert client.txn([etcd.compare_absent(key)], [etcd.op_get(keys.prefix, prefix=True)]).kvs(0) == []


def test_lease_ends_and_takes_its_keys_along(client: etcd.EtcdClient, keys: registry.Keys) -> None:
    lease = client.lease_grant(2)
    client.put(keys.of("l"), "1", lease)
    assert client.txn([etcd.compare_lease(keys.of("l"), lease)], []).succeeded
    assert client.lease_keepalive(lease) == 2
    assert client.lease_ttl(lease) in (1, 2)
    client.lease_revoke(lease)
    assert client.get(keys.of("l")) is None
    for act in (client.lease_keepalive, client.lease_ttl, client.lease_revoke):
        with pytest.raises(etcd.NotFound):
            act(lease)


def test_watch_tells_everything_since_a_revision(client: etcd.EtcdClient, keys: registry.Keys) -> None:
    first = client.put(keys.of("a"), "1")
    client.put(keys.of("a"), "2")
    client.delete(keys.of("a"))
    events: list[etcd.Event] = []
    with client.watch(keys.prefix, first, previous=True) as watch:
        for batch in watch:
            events += batch.events
            if len(events) == 3:
                break
        assert watch.revision >= first + 2
    assert [(event.type, event.kv.value) for event in events] == [("put", b"1"), ("put", b"2"), ("delete", b"")]
    assert events[2].kv.mod_revision == first + 2
    assert events[2].previous is not None
    assert events[2].previous.text() == "2"


@pytest.mark.parametrize("whole", [False, True], ids=["watch.close", "client.close"])
def test_watch_is_ended_from_another_thread(server: Server, keys: registry.Keys, whole: bool) -> None:
    client = server.client("root")
    watch = client.watch(keys.prefix)
    ended = threading.Event()

    def run() -> None:
        for _batch in watch:
            pass
        ended.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    client.close() if whole else watch.close()
    assert ended.wait(2)
    assert time.monotonic() - started < 0.5
    assert watch.closed


def test_watch_of_a_compacted_revision_names_the_oldest(client: etcd.EtcdClient, keys: registry.Keys) -> None:
    first = client.put(keys.of("a"), "1")
    last = client.put(keys.of("a"), "2")
    client.compact(last)
    with (
        pytest.raises(etcd.CompactedError, match=f"oldest left is {last}") as caught,
        client.watch(keys.prefix, first) as watch,
    ):
        next(watch)
    assert caught.value.compact_revision == last
    with pytest.raises(etcd.CompactedError):
        client.range(keys.prefix, revision=first)


def test_silent_watch_ends_with_an_error(client: etcd.EtcdClient, keys: registry.Keys) -> None:
    with client.watch(keys.prefix, idle_timeout=0.3) as watch, pytest.raises(etcd.Unavailable, match=r"within 0\.3 s"):
        next(watch)


def test_watch_breaks_when_the_member_dies(own_server: Server) -> None:
    with own_server.client() as client, client.watch("/x/") as watch:
        own_server.stop()
        with pytest.raises(etcd.Unavailable, match="closed by the member"):
            next(watch)
        with pytest.raises(etcd.Unavailable, match="connection refused"):
            client.watch("/x/")


def test_least_privilege_of_a_host(server: Server) -> None:
    shop = registry.Keys("shop")
    with server.client("host-app1") as client:
        for key in (
            shop.of("agents", "app1"),
            shop.of("targets", "app1"),
            shop.of("proxies", "app1", "sidecar-orders"),
            shop.of("acks", "app1", "sidecar-orders"),
            shop.of("services", "orders", "app1", 0),
        ):
            assert client.put(key, "{}")
        client.range(shop.prefix)
        client.watch(shop.prefix).close()
        for key in (
            shop.of("agents", "app2"),
            shop.of("agents", "app11"),
            shop.of("proxies", "app11", "gateway"),
            shop.of("services", "orders", "app2", 0),
            shop.of("services", "catalog", "app1", 0),
            shop.of("drains", "orders", "app1", 0),
            shop.of("traffic", "orders"),
            shop.of("locks", "orders"),
        ):
            with pytest.raises(etcd.AuthFailed, match="permission denied"):
                client.put(key, "{}")
        for act in (
            lambda: client.range("/causeway/other/"),
            lambda: client.get(registry.secret_key(shop)),
            lambda: next(client.watch("/")),
            lambda: client.user_add("x", "y"),
        ):
            with pytest.raises(etcd.AuthFailed):
                act()


def test_wrong_password_unknown_user_and_no_user(server: Server) -> None:
    for user, password in (("root", "wrong"), ("host-nobody", "x")):
        with server.client(user, password) as client, pytest.raises(etcd.AuthFailed, match=f"refuses user '{user}'"):
            client.get("/x")
    with server.client() as client, pytest.raises(etcd.AuthFailed, match="user name is empty"):
        client.get("/x")


def test_token_is_renewed_after_the_member_restarts(own_server: Server) -> None:
    with own_server.client("root", "pw") as client:
        client.user_add("root", "pw")
        client.role_add("root")
        client.user_grant("root", "root")
        assert not client.auth_enabled()
        client.auth_enable()
        assert client.auth_enabled()
        client.put("/x", "1")
        own_server.stop()
        own_server.start().wait()
        assert client.get("/x")
        own_server.stop()
        own_server.start().wait()
        # A watch with a token that was lost is cancelled, not refused.
        client.watch("/").close()


def test_status_and_members(server: Server, client: etcd.EtcdClient, tmp_path: Path) -> None:
    status = client.status(server.url)
    assert status.is_leader
    assert status.db_size >= status.db_size_in_use > 0
    (member,) = client.member_list()
    assert (member.id, member.name, member.client_urls) == (status.member, "one", (server.url,))
    assert client.alarm_list() == []
    assert client.health(server.url) == ""
    client.defragment(server.url)
    size = client.snapshot(str(tmp_path / "snapshot.db"))
    assert (tmp_path / "snapshot.db").stat().st_size == size
    assert (tmp_path / "snapshot.db").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot.db"]
    with pytest.raises(etcd.EtcdError, match="cannot write"):
        client.snapshot(str(tmp_path / "none" / "snapshot.db"))


def test_absent_things_are_not_found(client: etcd.EtcdClient) -> None:
    for act in (
        lambda: client.user_roles("none"),
        lambda: client.role_permissions("none"),
        lambda: client.member_remove(5),
    ):
        with pytest.raises(etcd.NotFound):
            act()


# --- trust ------------------------------------------------------------------------------------------------------


def test_member_with_an_unknown_root_is_refused(server: Server, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other root").issue("x")
    with server.client(tls=other) as client, pytest.raises(etcd.TlsError, match="the member's certificate is refused"):
        client.get("/x")


def test_client_with_an_unknown_root_is_refused(server: Server, tls: Path, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other root").issue("x")
    (other / "ca.pem").write_bytes((tls / "ca.pem").read_bytes())
    with server.client(tls=other) as client, pytest.raises(etcd.TlsError, match="the member refuses our certificate"):
        client.get("/x")


def test_expired_client_is_refused(server: Server, authority: Authority) -> None:
    with (
        server.client(tls=authority.issue("old", days=-1)) as client,
        pytest.raises(etcd.TlsError, match="refuses our"),
    ):
        client.get("/x")


def test_expired_member_and_wrong_name(tmp_path: Path, authority: Authority, tls: Path) -> None:
    for folder, words in (
        (authority.issue("old", days=-1), "expired"),
        (authority.issue("x", address="127.0.0.9"), "mismatch"),
    ):
        (tmp_path / folder.name).mkdir()
        one = Server(tmp_path / folder.name, folder).start()
        try:
            with one.client(tls=tls) as client:
                deadline = time.monotonic() + 10
                while True:
                    with pytest.raises(etcd.EtcdError) as caught:
                        client.get("/x")
                    if isinstance(caught.value, etcd.TlsError) or time.monotonic() > deadline:
                        break
                    time.sleep(0.05)
            assert isinstance(caught.value, etcd.TlsError)
            assert words in str(caught.value)
            assert one.url in str(caught.value)
        finally:
            one.stop()


def test_client_without_a_certificate_is_refused(server: Server, tls: Path) -> None:
    with etcd.EtcdClient([server.url], str(tls / "ca.pem")) as client:
        for act in (lambda: client.get("/x"), lambda: client.status(server.url), lambda: client.watch("/x")):
            with pytest.raises(etcd.TlsError, match=r"refuses our certificate: .*certificate"):
                act()


def test_missing_and_broken_files(server: Server, tls: Path, tmp_path: Path) -> None:
    with server.client(tls=tmp_path) as client, pytest.raises(etcd.TlsError, match="No such file"):
        client.get("/x")
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_bytes((tls / name).read_bytes())
    (tmp_path / "key.pem").write_text("garbage")
    with server.client(tls=tmp_path) as client, pytest.raises(etcd.TlsError, match="cannot use"):
        client.get("/x")


def test_rotated_certificates_are_picked_up(server: Server, authority: Authority, tmp_path: Path) -> None:
    current = tmp_path / "current"
    current.symlink_to(authority.issue("old", days=-1))
    with server.client("root", tls=current) as client:
        with pytest.raises(etcd.TlsError):
            client.get("/x")
        (tmp_path / "next").symlink_to(authority.issue("new"))
        (tmp_path / "next").rename(current)
        assert client.get("/x") is None


# --- failover ---------------------------------------------------------------------------------------------------


@pytest.fixture
def rude() -> Iterator[tuple[str, list[bytes]]]:
    """A listener without TLS that reads a request and hangs up."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    connection, _peer = listener.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(65536))

        threading.Thread(target=run, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)


def test_another_endpoint_helps(server: Server) -> None:
    dead = f"https://127.0.0.1:{free_port()}"
    with server.client("root") as client:
        client.endpoints = (dead, server.url)
        client._preferred = 0
        assert client.put("/failover", "1")
        assert client._preferred == 1


def test_silent_endpoint_costs_its_share_only(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, server.client("root", timeout=4.0) as client:
        client.endpoints = (f"https://127.0.0.1:{listener.getsockname()[1]}", server.url)
        client._preferred = 0
        started = time.monotonic()
        assert client.get("/x") is None
        assert time.monotonic() - started < 3.9


def test_every_endpoint_is_named(tls: Path) -> None:
    ports = free_port(), free_port()
    with etcd.EtcdClient([f"http://127.0.0.1:{port}" for port in ports], timeout=1) as client:
        with pytest.raises(etcd.Unavailable) as caught:
            client.get("/x")
        for port in ports:
            assert f"http://127.0.0.1:{port}: connection refused" in str(caught.value)
        assert set(caught.value.failures.values()) == {"connection refused"}


def test_transaction_with_unknown_outcome_is_not_sent_twice(rude: tuple[str, list[bytes]]) -> None:
    url, asked = rude
    with etcd.EtcdClient([url, f"http://127.0.0.1:{free_port()}"], timeout=1) as client:
        client._preferred = 0
        with pytest.raises(etcd.Unavailable, match="not known") as caught:
            client.swap("/x", "1", 0)
        assert caught.value.maybe_done
        assert len(asked) == 1
        with pytest.raises(etcd.Unavailable) as caught:
            client.put("/x", "1")
        assert not caught.value.maybe_done
        assert len(caught.value.failures) == 2


def test_no_quorum_is_told(tmp_path: Path, tls: Path) -> None:
    one, two = Server(tmp_path, tls, "one"), Server(tmp_path, tls, "two")
    one.initial = two.initial = f"one={one.peer_url},two={two.peer_url}"
    try:
        one.start()
        two.start()
        one.wait()
        two.wait()
        with one.client(timeout=1.0) as client:
            client.put("/x", "1")
            two.stop()
            for act in (lambda: client.get("/x"), lambda: client.put("/x", "2"), lambda: client.swap("/y", "1", 0)):
                started = time.monotonic()
                with pytest.raises(etcd.Unavailable) as caught:
                    act()
                assert one.url in str(caught.value)
                assert time.monotonic() - started < 3
            # The member's own view still works.
            found = client.get("/x", serializable=True)
            assert found is not None
            assert len(client.member_list()) == 2
            assert client.status(one.url).db_size
            health = registry.cluster_health(client)
            assert [bool(state.reason) for state in health] == [True, True]
    finally:
        one.stop()
        two.stop()


def test_learner_is_promoted_whoever_is_asked(tmp_path: Path, tls: Path) -> None:
    one, two, three = (Server(tmp_path, tls, name) for name in ("one", "two", "three"))
    founders = f"one={one.peer_url},two={two.peer_url}"
    one.initial = two.initial = founders
    try:
        for server in (one, two):
            server.start()
        for server in (one, two):
            server.wait()
        for server in (one, two):
            with server.client("root", "pw", timeout=10) as client:
                if server is one:
                    client.user_add("root", "pw")
                    client.role_add("root")
                    client.user_grant("root", "root")
                    client.auth_enable()
                if not client.status(server.url).is_leader:
                    follower = server
        with follower.client("root", "pw", timeout=10) as client:
            member = client.member_add([three.peer_url], learner=True)
            assert member.learner
            three.initial = f"{founders},three={three.peer_url}"
            three.state = "existing"
            three.start()
            deadline = time.monotonic() + 30
            while next(known for known in client.member_list() if known.id == member.id).learner:
                assert time.monotonic() < deadline
                try:
                    client.member_promote(member.id)
                except etcd.EtcdError as error:
                    assert "in sync" in str(error), error
                    time.sleep(0.1)
            assert len(client.member_list()) == 3
    finally:
        for server in (one, two, three):
            server.stop()


@pytest.mark.parametrize("url", ["10.0.0.1:2379", "ftp://10.0.0.1", "https://", ""])
def test_bad_endpoints_are_refused(url: str) -> None:
    with pytest.raises(etcd.EtcdError, match="is not a URL"):
        etcd.EtcdClient([url])
    with pytest.raises(etcd.EtcdError, match="endpoints is empty"):
        etcd.EtcdClient([])


def test_threads_share_a_client(server: Server, keys: registry.Keys) -> None:
    with server.client("root") as client:
        errors: list[Exception] = []

        def run(number: int) -> None:
            try:
                for count in range(20):
                    client.put(keys.of("n", number), str(count))
                    client.range(keys.prefix)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert [kv.text() for kv in client.range(keys.of("n") + "/")[0]] == ["19"] * 6


def test_needs_the_standard_library_only() -> None:
    code = "import sys; sys.modules['ansible'] = None; sys.path.insert(0, sys.argv[1]); import etcd"
    folder = Path(etcd.__file__).parent
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(folder)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_passwords_are_those_of_the_design() -> None:
    # printf etcd/root | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
    assert registry.password(SECRET, "root") == "54ac2d79e1fae4db238362c70cf118b9de63e65c0a973468e020528322dbcbd8"
    assert json.dumps(registry.password(SECRET, "host-app1")) != json.dumps(registry.password(SECRET, "root"))

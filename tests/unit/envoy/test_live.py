# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway and two sidecars as real Envoys: client, gateway, orders, catalog."""

from __future__ import annotations

import dataclasses
import http.client
import re
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sample
from live import Answer, Authority, Proxy, Upstream, client_context, connect, request, wait_for

from ansible_collections.causeway.platform.plugins.module_utils.envoy import common, proxies
from ansible_collections.causeway.platform.plugins.module_utils.envoy.settings import Settings

EDGE, APP, PORT = "127.77.1.11", "127.77.1.31", 18443
ORDERS, CATALOG = 7110, 7100
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def endpoints(cluster: str, members: list[tuple[str, int, str]]) -> dict[str, Any]:
    """An EDS document as the agent writes it."""
    entries = [
        {
            "endpoint": {"address": common.socket(address, port)},
            "health_status": status,
            "metadata": {"filter_metadata": {"envoy.lb": {"instance": "app1-0", "version": "1.0.0"}}},
        }
        for address, port, status in members
    ]
    locality = {"region": "north", "zone": "north-a"}
    return common.discovery(
        common.ENDPOINTS,
        [{"cluster_name": cluster, "endpoints": [{"locality": locality, "priority": 0, "lb_endpoints": entries}]}],
    )


@dataclasses.dataclass
class Mesh:
    """Everything that runs, and how to talk to it."""

    root: Path
    authority: Authority
    gateway: Proxy
    orders: Proxy
    catalog: Proxy
    services: dict[str, Any]

    def tls(self, identity: str) -> Path:
        return self.root / "etc/causeway/tls" / identity

    def public(self, path: str, **options: Any) -> Answer:
        ca = self.tls("gateway") / "current/ca.pem"
        return request(EDGE, PORT, path, client_context(ca, version=options.pop("version", None)), **options)

    def agent(self, proxy: Proxy, documents: dict[str, Any], members: dict[str, list[tuple[str, int, str]]]) -> None:
        """Write what the agent would."""
        for cluster in documents["clusters"]:
            proxy.write(proxy.xds / f"eds/{cluster}.json", endpoints(cluster, members.get(cluster, [])))
        for name, configuration in documents["routes"].items():
            proxy.write(proxy.xds / f"rds/{name}.json", common.discovery(common.ROUTES, [configuration]))


def answers(mesh: Mesh) -> bool:
    """Whether the whole chain works."""
    try:
        return mesh.public("/orders/warm").status == 200
    except OSError:
        return False


def described() -> dict[str, Any]:
    services = sample.services()
    services["orders"]["routes"] += [
        sample.route("/limited", rate_limit={"requests": 2, "per": 10.0, "burst": 4}),
        sample.route("/readonly", methods=["GET"]),
    ]
    services["billing"] = sample.service("billing", 2)
    services["orders"]["metrics"] = {"path": "/orders/metrics"}  # below its own route, to see that nobody gets there
    return services


@pytest.fixture(scope="module")
def mesh(envoy: str) -> Iterator[Mesh]:
    # Not tmp_path: a unix socket's path may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="cw-") as name:
        root = Path(name)
        authority = Authority("causeway test root")
        for identity, who in (
            ("gateway", "gateway"),
            ("svc-orders", "orders"),
            ("svc-catalog", "catalog"),
            ("svc-billing", "billing"),
            ("metrics", "metrics"),
        ):
            authority.write(
                root / "etc/causeway/tls" / identity, f"spiffe://{sample.DOMAIN}/{who}", [f"{who}.{sample.DOMAIN}"]
            )
        services = described()
        settings = Settings(port=PORT, idle_timeout=30.0, header_timeout=1.0)
        platform = sample.platform(services)
        documents = {
            "gateway": proxies.gateway("edge1", platform, settings),
            **proxies.sidecars("app1", platform, settings),
        }
        upstreams = [Upstream("127.89.1.10", 8080, "orders"), Upstream("127.89.0.10", 8080, "catalog")]
        running = {
            proxy: Proxy(envoy, root, documents[proxy]) for proxy in ("gateway", "sidecar-orders", "sidecar-catalog")
        }
        mesh = Mesh(
            root, authority, running["gateway"], running["sidecar-orders"], running["sidecar-catalog"], services
        )
        members = {"orders_stable": [(APP, ORDERS, "HEALTHY")], "catalog_stable": [(APP, CATALOG, "HEALTHY")]}
        try:
            for proxy, process in running.items():
                mesh.agent(process, documents[proxy]["proxy"], members)
            for process in (mesh.catalog, mesh.orders, mesh.gateway):
                process.start()
            wait_for(lambda: answers(mesh), "the first answer", mesh.gateway.log)
            yield mesh
        finally:
            for process in running.values():
                process.stop()
            for upstream in upstreams:
                upstream.close()


def test_a_request_reaches_the_service_and_the_answer_is_clean(mesh: Mesh) -> None:
    answer = mesh.public("/orders/1")
    assert answer.status == 200
    assert answer.json()["service"] == "orders"
    assert answer.headers["strict-transport-security"].startswith("max-age=31536000")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not {"server", "x-powered-by", "x-envoy-upstream-service-time"} & set(answer.headers)


def test_identifiers_are_made_and_handed_on(mesh: Mesh) -> None:
    answer = mesh.public("/orders/1")
    seen = answer.json()["headers"]
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", seen["x-request-id"])
    assert seen["x-correlation-id"] == seen["x-request-id"] == answer.headers["x-request-id"]
    assert answer.headers["x-correlation-id"] == seen["x-request-id"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", seen["traceparent"]), "sampled only if asked"


def test_identifiers_of_the_client_are_kept(mesh: Mesh) -> None:
    headers = {"x-request-id": "my-request", "x-correlation-id": "my-flow", "traceparent": TRACE}
    answer = mesh.public("/orders/1", headers=headers)
    seen = answer.json()["headers"]
    assert (seen["x-request-id"], seen["x-correlation-id"]) == ("my-request", "my-flow")
    version, trace, span, flags = seen["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE.split("-")[1], "01")
    assert span != TRACE.split("-")[2], "each hop has its own span"


def test_an_outbound_call_keeps_the_trace_and_reaches_the_callee(mesh: Mesh) -> None:
    headers = {"x-request-id": "my-request", "x-correlation-id": "my-flow", "traceparent": TRACE}
    answer = request("127.89.1.1", 9001, "/items/1", headers=headers)
    assert answer.status == 200
    seen = answer.json()
    assert seen["service"] == "catalog"
    assert (seen["headers"]["x-request-id"], seen["headers"]["x-correlation-id"]) == ("my-request", "my-flow")
    assert seen["headers"]["traceparent"].split("-")[1] == TRACE.split("-")[1]
    assert seen["headers"]["x-forwarded-client-cert"] == f"URI=spiffe://{sample.DOMAIN}/orders" or (
        f"URI=spiffe://{sample.DOMAIN}/orders" in seen["headers"]["x-forwarded-client-cert"]
    )


def test_spoofed_headers_of_a_client_are_dropped(mesh: Mesh) -> None:
    spoofed = {
        "x-envoy-retry-on": "5xx",
        "x-envoy-upstream-rq-timeout-ms": "100000",
        "x-envoy-internal": "true",
        "x-forwarded-client-cert": "URI=spiffe://shop.internal/catalog",
    }
    answer = mesh.public("/orders/1", headers=spoofed)
    assert answer.status == 200
    seen = answer.json()["headers"]
    assert not {"x-envoy-retry-on", "x-envoy-upstream-rq-timeout-ms", "x-envoy-internal"} & set(seen)
    assert "catalog" not in seen["x-forwarded-client-cert"]


def test_a_client_cannot_set_timeouts_or_retries(mesh: Mesh) -> None:
    assert (
        mesh.public("/orders/slow-spoof", method="POST", headers={"x-envoy-upstream-rq-timeout-ms": "50"}).status == 200
    )
    answer = mesh.public("/orders/flaky-spoof", method="POST", headers={"x-envoy-retry-on": "5xx,reset"})
    assert answer.status == 503


@pytest.mark.parametrize("path", ["/nowhere", "/ordersheet", "/"])
def test_unknown_paths_get_json_with_the_request_id(mesh: Mesh, path: str) -> None:
    answer = mesh.public(path, headers={"x-request-id": "who-am-i"})
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"status": 404, "error": "not found", "request_id": "who-am-i"}
    assert answer.headers["x-request-id"] == "who-am-i"
    assert "strict-transport-security" in answer.headers


@pytest.mark.parametrize("method, status", [("GET", 200), ("POST", 405), ("DELETE", 405)])
def test_methods_are_limited_by_the_route(mesh: Mesh, method: str, status: int) -> None:
    answer = mesh.public("/readonly/1", method=method)
    assert answer.status == status
    if status == 405:
        assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize(
    "path, status", [("/orders/%2e%2e/admin", 404), ("//orders//1", 200), ("/orders/a%2fb", 400), ("/orders/../x", 404)]
)
def test_paths_are_normalised(mesh: Mesh, path: str, status: int) -> None:
    assert mesh.public(path).status == status


def test_header_names_with_underscores_are_refused(mesh: Mesh) -> None:
    assert mesh.public("/orders/1", headers={"x_user": "root"}).status == 400


def test_a_safe_request_is_retried_after_503_and_an_unsafe_one_is_not(mesh: Mesh) -> None:
    answer = mesh.public("/orders/flaky-get")
    assert (answer.status, answer.json()["number"]) == (200, 2)
    assert mesh.public("/orders/flaky-post", method="POST", body=b"{}").status == 503


def test_a_slow_try_is_given_up_and_repeated_for_safe_methods_only(mesh: Mesh) -> None:
    started = time.monotonic()
    answer = mesh.public("/orders/slow-get")
    assert (answer.status, answer.json()["number"]) == (200, 2)
    assert time.monotonic() - started < 1.6
    answer = mesh.public("/orders/slow-post", method="POST", body=b"{}")
    assert (answer.status, answer.json()["number"]) == (200, 1)


def test_each_client_has_its_own_rate_limit(mesh: Mesh) -> None:
    statuses = [mesh.public("/limited/1", method=method) for method in ("GET", "POST", "GET", "POST", "GET", "POST")]
    assert [answer.status for answer in statuses] == [200, 200, 200, 200, 429, 429], "one bucket for all methods"
    refused = statuses[-1]
    assert refused.headers["retry-after"] == "5"
    assert refused.json()["error"] == "too many requests"
    # Another client address has a bucket of its own.
    ca = mesh.tls("gateway") / "current/ca.pem"
    other = http.client.HTTPSConnection(
        EDGE, PORT, context=client_context(ca), source_address=("127.0.0.9", 0), timeout=5
    )
    other.request("GET", "/limited/1")
    assert other.getresponse().status == 200
    other.close()
    assert mesh.public("/orders/1").status == 200, "other routes are not affected"


@pytest.mark.parametrize(
    "accepted, chosen",
    [("gzip, br, zstd", "br"), ("gzip", "gzip"), ("zstd", "zstd"), ("br;q=0.1, gzip;q=1", "gzip"), ("identity", None)],
)
def test_large_json_is_compressed(mesh: Mesh, accepted: str, chosen: str | None) -> None:
    answer = mesh.public("/orders/big", headers={"accept-encoding": accepted})
    assert answer.headers.get("content-encoding") == chosen
    assert (len(answer.body) < 5000) == (chosen is not None)


def test_small_answers_are_not_compressed(mesh: Mesh) -> None:
    # A 404 body is far below the smallest size worth compressing.
    assert "content-encoding" not in mesh.public("/nowhere", headers={"accept-encoding": "gzip"}).headers


def test_tls_1_2_is_refused_at_the_gateway(mesh: Mesh) -> None:
    with pytest.raises(ssl.SSLError):
        mesh.public("/orders/1", version=ssl.TLSVersion.TLSv1_2)


def test_plain_text_is_refused_by_gateway_and_sidecar(mesh: Mesh) -> None:
    for address, port in ((EDGE, PORT), (APP, ORDERS)):
        with pytest.raises((ConnectionError, http.client.HTTPException, OSError)):
            request(address, port, "/orders/1")


def test_a_sidecar_refuses_a_client_without_certificate(mesh: Mesh) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        request(APP, ORDERS, "/orders/1", client_context(mesh.tls("gateway") / "current/ca.pem"))


def test_a_sidecar_refuses_a_certificate_of_another_authority(mesh: Mesh) -> None:
    stranger = mesh.root / "stranger"
    Authority("stranger").write(stranger, f"spiffe://{sample.DOMAIN}/gateway", ["gateway.shop.internal"])
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        request(APP, ORDERS, "/orders/1", client_context(None, stranger))


@pytest.mark.parametrize(
    "caller, port, status",
    [
        ("gateway", ORDERS, 200),
        ("svc-orders", CATALOG, 200),
        ("gateway", CATALOG, 403),  # catalog has no public route
        ("svc-billing", CATALOG, 403),  # not in billing's calls
        ("svc-catalog", ORDERS, 403),  # calls go one way
        ("metrics", ORDERS, 403),
    ],
)
def test_only_declared_callers_are_let_in(mesh: Mesh, caller: str, port: int, status: int) -> None:
    context = client_context(mesh.tls("gateway") / "current/ca.pem", mesh.tls(caller))
    assert request(APP, port, "/orders/1", context).status == status


@pytest.mark.parametrize(
    "caller, path, status",
    [
        ("metrics", "/stats/prometheus", 200),
        ("metrics", "/config_dump", 404),
        ("metrics", "/quitquitquit", 404),
        ("metrics", "/stats/prometheus/../../config_dump", 404),
        ("gateway", "/stats/prometheus", 403),
    ],
)
@pytest.mark.parametrize("place", [(EDGE, 9102), (APP, 9111)])
def test_metrics_are_for_prometheus_only(
    mesh: Mesh, caller: str, path: str, status: int, place: tuple[str, int]
) -> None:
    context = client_context(mesh.tls("gateway") / "current/ca.pem", mesh.tls(caller))
    answer = request(*place, path, context)
    assert answer.status == status
    if status == 200:
        assert b"envoy_cluster_upstream_rq" in answer.body


@pytest.mark.parametrize(
    ("caller", "path", "method", "status"),
    [
        ("metrics", "/orders/metrics", "GET", 200),
        ("metrics", "/orders/metrics?format=prometheus", "GET", 200),
        ("metrics", "/orders/metrics", "POST", 403),
        ("metrics", "/orders/1", "GET", 403),
        ("gateway", "/orders/metrics", "GET", 403),
        ("gateway", "/orders//metrics", "GET", 403),
        ("gateway", "/orders/%6detrics", "GET", 403),
        ("gateway", "/orders/1", "GET", 200),
    ],
)
def test_a_services_own_metrics_are_for_prometheus_only(
    mesh: Mesh, caller: str, path: str, method: str, status: int
) -> None:
    context = client_context(mesh.tls("gateway") / "current/ca.pem", mesh.tls(caller))
    assert request(APP, ORDERS, path, context, method=method).status == status


def test_the_gateway_refuses_an_upstream_with_another_identity(mesh: Mesh) -> None:
    """catalog's sidecar stands where orders should be: right authority, wrong SPIFFE identity."""
    target = mesh.gateway.xds / "eds/orders_stable.json"
    mesh.gateway.write(target, endpoints("orders_stable", [(APP, CATALOG, "HEALTHY")]))
    try:
        wait_for(lambda: mesh.public("/orders/1").status == 503, "the impostor to be refused")
        assert "verify_san" in mesh.gateway.get("/stats?filter=orders_stable.*verify_san") and not mesh.gateway.get(
            "/stats?filter=orders_stable.ssl.fail_verify_san"
        ).strip().endswith(": 0")
    finally:
        mesh.gateway.write(target, endpoints("orders_stable", [(APP, ORDERS, "HEALTHY")]))
    wait_for(lambda: mesh.public("/orders/1").status == 200, "the real one to be back")


def test_slow_headers_are_cut_off(mesh: Mesh) -> None:
    context = client_context(mesh.tls("gateway") / "current/ca.pem")
    with connect(EDGE, PORT, context) as connection:
        connection.connect()
        connection.sock.sendall(b"GET /orders/1 HTTP/1.1\r\nhost: x\r\n")
        connection.sock.settimeout(5)
        started = time.monotonic()
        answer = connection.sock.recv(4096)
        assert b"408" in answer.split(b"\r\n")[0]
        assert 0.5 < time.monotonic() - started < 4


def test_the_access_log_has_what_a_person_looks_for(mesh: Mesh) -> None:
    mesh.public("/orders/logged?token=secret", headers={"x-request-id": "log-me", "traceparent": TRACE})

    def entry(proxy: Proxy) -> dict[str, Any] | None:
        return next((line for line in proxy.logged() if line.get("request_id") == "log-me"), None)

    wait_for(lambda: entry(mesh.gateway) is not None and entry(mesh.orders) is not None, "the log lines", timeout=15)
    line = entry(mesh.gateway)
    assert line is not None
    assert line["direction"] == "gateway"
    assert (line["method"], line["path"], line["status"]) == ("GET", "/orders/logged", 200)
    assert line["upstream_cluster"] == "orders_stable" and line["upstream_host"] == f"{APP}:{ORDERS}"
    assert (line["instance"], line["version"]) == ("app1-0", "1.0.0")
    assert line["trace_id"] == TRACE.split("-")[1]
    assert line["correlation_id"] == "log-me" and line["tls_version"] == "TLSv1.3" and line["client"] == "127.0.0.1"
    assert line["bytes_sent"] > 0 and line["duration_ms"] >= 0 and line["attempts"] == 1
    inbound = entry(mesh.orders)
    assert inbound is not None
    assert (inbound["direction"], inbound["service"], inbound["instance"]) == ("inbound", "orders", "app1-0")
    assert inbound["peer"] == f"spiffe://{sample.DOMAIN}/gateway"
    assert inbound["trace_id"] == TRACE.split("-")[1]
    logged = mesh.gateway.log.read_text(encoding="utf-8") + mesh.orders.log.read_text(encoding="utf-8")
    assert "token=secret" not in logged
    assert not [entry for entry in mesh.orders.logged() if entry.get("path") == "/healthz"], "no health checks"


class Load(threading.Thread):
    """Requests without pause over keep-alive connections until stopped; remembers what was not 200."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(daemon=True)
        self.context = client_context(mesh.tls("gateway") / "current/ca.pem")
        self.finished = threading.Event()
        self.sent = 0
        self.failed: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPSConnection(EDGE, PORT, timeout=5, context=self.context)
        while not self.finished.is_set():
            try:
                connection.request("GET", "/orders/load")
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    self.failed.append(f"{response.status} after {self.sent}")
                if response.getheader("connection") == "close":
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{error!r} after {self.sent}")
                connection.close()
            self.sent += 1
            time.sleep(0.002)
        connection.close()

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        self.join(10)


def version_text(proxy: Proxy, kind: str) -> str:
    return proxy.get(f"/stats?filter={kind}.version_text")


def test_listeners_and_clusters_change_under_load_without_a_failure(mesh: Mesh) -> None:
    with Load(mesh) as load:
        for round_number in range(4):
            settings = Settings(
                port=PORT, header_timeout=1.0, idle_timeout=30.0 + round_number, hsts_max_age=1000 + round_number
            )
            changed = proxies.gateway("edge1", sample.platform(mesh.services), settings)
            for name, kind in (("cds", "cluster_manager.cds"), ("lds", "listener_manager.lds")):
                mesh.gateway.write(mesh.gateway.config / f"{name}.yaml", changed[name])
                expected = changed[name]["version_info"]
                wait_for(
                    lambda kind=kind, expected=expected: expected in version_text(mesh.gateway, kind),
                    f"{name} round {round_number}",
                    mesh.gateway.log,
                )
            time.sleep(0.5)
    assert load.sent > 30
    assert load.failed == []


def test_certificates_are_renewed_under_load_without_a_failure(mesh: Mesh) -> None:
    def served() -> int:
        from cryptography import x509

        context = client_context(mesh.tls("gateway") / "current/ca.pem")
        with connect(EDGE, PORT, context) as connection:
            connection.connect()
            der = connection.sock.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).serial_number

    with Load(mesh) as load:
        for identity, who in (("gateway", "gateway"), ("svc-orders", "orders")):
            serial = mesh.authority.write(
                mesh.tls(identity), f"spiffe://{sample.DOMAIN}/{who}", [f"{who}.{sample.DOMAIN}"]
            )
            if identity == "gateway":
                wait_for(lambda serial=serial: served() == serial, "the new certificate")
        time.sleep(0.5)
    assert load.failed == []


def test_a_revoked_caller_is_refused_once_the_list_is_there(mesh: Mesh) -> None:
    revoked = mesh.root / "etc/causeway/tls/revoked"
    serial = mesh.authority.write(revoked, f"spiffe://{sample.DOMAIN}/gateway", ["gateway.shop.internal"])
    context = client_context(mesh.tls("gateway") / "current/ca.pem", revoked)
    assert request(APP, ORDERS, "/orders/1", context).status == 200
    mesh.authority.revoked.append(serial)
    mesh.authority.write(mesh.tls("svc-orders"), f"spiffe://{sample.DOMAIN}/orders", [f"orders.{sample.DOMAIN}"])

    def refused() -> bool:
        try:
            return request(APP, ORDERS, "/orders/1", context).status != 200
        except (OSError, http.client.HTTPException):
            return True

    wait_for(refused, "the revoked certificate to be refused", mesh.orders.log)
    assert mesh.public("/orders/1").status == 200


def test_a_draining_sidecar_sends_its_callers_away(mesh: Mesh) -> None:
    """Health checks through the sidecar fail as soon as it is told to, though the service is well."""
    context = client_context(mesh.tls("gateway") / "current/ca.pem", mesh.tls("gateway"))
    assert request(APP, ORDERS, "/healthz", context).status == 200
    mesh.orders.get("/healthcheck/fail", "POST")
    try:
        assert request(APP, ORDERS, "/healthz", context).status == 503
        assert request(APP, ORDERS, "/orders/1", context).status == 200, "running requests still work"
    finally:
        mesh.orders.get("/healthcheck/ok", "POST")
    wait_for(lambda: mesh.public("/orders/1").status == 200, "the sidecar to be back")

# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS 1.3 contexts and the secrets behind them (files below /etc/causeway/tls, reloaded when the symlink moves)."""

from __future__ import annotations

from collections.abc import Sequence

from .common import CONFIG_ROOT, SECRET, TLS_ROOT, Json, discovery, file_source, named

# Mozilla's "modern" profile: TLS 1.3 only, these three groups.
CURVES = ["X25519", "P-256", "P-384"]
PARAMETERS: Json = {
    "tls_minimum_protocol_version": "TLSv1_3",
    "tls_maximum_protocol_version": "TLSv1_3",
    "ecdh_curves": CURVES,
}
IDENTITY = "identity"
TRUST = "trust"


def spiffe(domain: str, name: str) -> str:
    """SPIFFE identity of a service, of the gateway or of metrics."""
    return f"spiffe://{domain}/{name}"


def secrets(identity: str) -> dict[str, Json]:
    """SDS documents by file name, one secret in each: own certificate and key; trust bundle with revocation lists."""
    directory = f"{TLS_ROOT}/{identity}"
    current = f"{directory}/current"
    # 'current' is a symlink that is swapped by rename inside this directory: every file changes at one moment.
    watched = {"watched_directory": {"path": directory}}
    own = {
        "certificate_chain": {"filename": f"{current}/cert.pem"},
        "private_key": {"filename": f"{current}/key.pem"},
        **watched,
    }
    trust = {
        "trusted_ca": {"filename": f"{current}/ca.pem"},
        "crl": {"filename": f"{current}/crl.pem"},
        "only_verify_leaf_cert_crl": True,
        **watched,
    }
    return {
        f"sds-{IDENTITY}": discovery(SECRET, [{"name": IDENTITY, "tls_certificate": own}]),
        f"sds-{TRUST}": discovery(SECRET, [{"name": TRUST, "validation_context": trust}]),
    }


def _secret(proxy: str, name: str) -> Json:
    return {"name": name, "sds_config": file_source(f"{CONFIG_ROOT}/{proxy}/sds-{name}.yaml")}


def _common(proxy: str, alpn: list[str]) -> Json:
    return {
        "tls_params": PARAMETERS,
        **({"alpn_protocols": alpn} if alpn else {}),
        "tls_certificate_sds_secret_configs": [_secret(proxy, IDENTITY)],
    }


def server_public(proxy: str) -> Json:
    """Transport socket for the public: no client certificate."""
    return named(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=_common(proxy, ["h2", "http/1.1"]),
    )


def server_mutual(proxy: str, alpn: Sequence[str] = ("h2", "http/1.1")) -> Json:
    """Transport socket inside the platform: a client certificate of the platform's trust is required."""
    return named(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            **_common(proxy, list(alpn)),
            "validation_context_sds_secret_config": _secret(proxy, TRUST),
        },
        require_client_certificate=True,
        # A resumed session would keep a revoked or rotated client certificate alive.
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )


def client(proxy: str, domain: str, service: str, sni: str = "", alpn: Sequence[str] = ("h2",)) -> Json:
    """Transport socket towards a service: own certificate shown, exactly the service's SPIFFE identity accepted."""
    return named(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        sni=sni or f"{service}.{domain}",
        common_tls_context={
            **_common(proxy, list(alpn)),
            "combined_validation_context": {
                "default_validation_context": {
                    "match_typed_subject_alt_names": [
                        {"san_type": "URI", "matcher": {"exact": spiffe(domain, service)}}
                    ]
                },
                "validation_context_sds_secret_config": _secret(proxy, TRUST),
            },
        },
    )

# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The authorities of a trust host: their generations, revocation lists and the index of what was issued.

Layout below the store (default /var/lib/causeway/trust), one directory per authority:

    <authority>/authority.json       kind, issuer, generations; written last, so it is what counts
    <authority>/g<n>.pem             certificate of generation n
    <authority>/g<n>.crl.pem         its revocation list
    <authority>/index.json           certificates that were issued, with revocations

Several modules in one run read and write it under one lock. No private key is ever in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils import hsm
from ansible_collections.causeway.platform.plugins.module_utils import x509_build as build
from ansible_collections.causeway.platform.plugins.module_utils.x509_common import (
    NotReadyError,
    TrustError,
    check_name,
    from_iso,
    iso,
    write_file,
)

# Expired certificates stay in the index this long, for those who look into an old connection log.
KEEP_EXPIRED = timedelta(days=90)


@dataclass(frozen=True)
class Generation:
    """One key pair of an authority and the certificate made for it."""

    number: int
    key_label: str
    serial: str
    not_before: str
    not_after: str
    issuer_generation: int = 0
    retired: bool = False


@dataclass(frozen=True)
class Authority:
    """A root or intermediate with all its generations, oldest first; the last one signs."""

    name: str
    kind: str
    issuer: str
    token: str
    generations: tuple[Generation, ...] = ()
    crl_numbers: dict[str, int] = field(default_factory=dict)

    @property
    def current(self) -> Generation:
        return self.generations[-1]

    def live(self, moment: datetime) -> list[Generation]:
        """Generations that somebody may still have to verify."""
        return [item for item in self.generations if not item.retired and from_iso(item.not_after) > moment]


@dataclass(frozen=True)
class Issued:
    """One line of the index."""

    serial: str
    host: str
    identity: str
    generation: int
    not_before: str
    not_after: str
    key: str = ""
    revoked_at: str = ""
    reason: str = ""


class TokenSigner:
    """A key of an open token session as ``x509_build.Signer``."""

    def __init__(self, session: hsm.Session, key: hsm.KeyInfo) -> None:
        self._session = session
        self.label = key.label
        self.curve = key.curve
        self.point = key.point

    def sign_digest(self, digest: bytes) -> bytes:
        return self._session.sign(self.label, digest)

    @property
    def public_key(self) -> Any:
        return build.public_key(self.curve, self.point)


def signer_for(session: hsm.Session, label: str, certificate: Any) -> TokenSigner:
    """The key that belongs to an authority's certificate; refuses a missing or foreign key."""
    key = session.find_key(label)
    if key is None:
        raise NotReadyError(
            f"key {label!r} is not in token {session.info.label!r} (serial {session.info.serial})"
            " although its certificate is in the store;"
            " is this another token with the same label, or was the token restored without its keys?"
        )
    signer = TokenSigner(session, key)
    if not build.same_key(signer.public_key, certificate.public_key()):
        raise TrustError(
            f"key {label!r} in token {session.info.label!r} (serial {session.info.serial})"
            " does not belong to the certificate in the store;"
            " is this another token with the same label?"
        )
    return signer


class Store:
    """Reads and writes the authorities below one directory. Callers hold ``x509_common.locked``."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def _directory(self, name: str) -> Path:
        return self.path / check_name(name, "authority")

    def names(self) -> list[str]:
        return sorted(item.parent.name for item in self.path.glob("*/authority.json"))

    def find(self, name: str) -> Authority | None:
        path = self._directory(name) / "authority.json"
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            generations = tuple(Generation(**item) for item in data.pop("generations"))
            return Authority(generations=generations, **data)
        except (ValueError, TypeError, KeyError) as error:
            raise TrustError(
                f"{path} is damaged ({type(error).__name__}); restore it from a backup of the trust host"
            ) from error

    def get(self, name: str) -> Authority:
        found = self.find(name)
        if found is None or not found.generations:
            known = ", ".join(self.names()) or "none"
            raise NotReadyError(
                f"there is no authority {name!r} in {self.path} (known: {known}); x509_authority makes it"
            )
        return found

    def save(self, authority: Authority) -> None:
        data = json.dumps(asdict(authority), indent=1, sort_keys=True) + "\n"
        write_file(self._directory(authority.name) / "authority.json", data.encode(), 0o600)

    def certificate(self, name: str, number: int) -> Any:
        path = self._directory(name) / f"g{number}.pem"
        if not path.exists():
            raise TrustError(
                f"{path} is missing although authority.json lists it; restore it from a backup of the trust host"
            )
        return build.parse_certificates(path.read_text(encoding="ascii", errors="replace"), str(path))[0]

    def save_certificate(self, name: str, number: int, certificate: Any) -> None:
        directory = self._directory(name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(directory / f"g{number}.pem", build.pem(certificate).encode(), 0o644)

    def crl(self, name: str, number: int) -> Any | None:
        path = self._directory(name) / f"g{number}.crl.pem"
        try:
            return build.parse_crls(path.read_text(encoding="ascii"))[0]
        except (FileNotFoundError, IndexError, UnicodeDecodeError, TrustError):
            return None  # a missing or damaged list is signed again from the index

    def save_crl(self, name: str, number: int, crl: Any) -> None:
        write_file(self._directory(name) / f"g{number}.crl.pem", build.pem(crl).encode(), 0o644)

    def index(self, name: str) -> list[Issued]:
        path = self._directory(name) / "index.json"
        if not path.exists():
            return []
        try:
            return [Issued(**item) for item in json.loads(path.read_text(encoding="utf-8"))]
        except (ValueError, TypeError) as error:
            raise TrustError(
                f"{path} is damaged ({type(error).__name__}); restore it from a backup of the trust host"
            ) from error

    def save_index(self, name: str, entries: Sequence[Issued], moment: datetime) -> None:
        kept = [asdict(item) for item in entries if from_iso(item.not_after) > moment - KEEP_EXPIRED]
        lines = ",\n".join(json.dumps(item, sort_keys=True) for item in kept)
        write_file(self._directory(name) / "index.json", f"[\n{lines}\n]\n".encode(), 0o600)

    def roots(self, moment: datetime) -> list[Any]:
        """Certificates of all live root generations, newest first."""
        result = []
        for name in self.names():
            authority = self.get(name)
            if authority.kind == "root":
                result += [self.certificate(name, item.number) for item in reversed(authority.live(moment))]
        return result


@dataclass(frozen=True)
class AuthorityWish:
    """What x509_authority was asked for."""

    name: str
    kind: str
    issuer: str
    common_name: str
    organization: str
    curve: str
    key_label: str
    life: timedelta
    renew_at: float
    backdate: timedelta
    path_length: int
    permitted_dns: tuple[str, ...] = ()
    permitted_uris: tuple[str, ...] = ()
    rotate: bool = False


def check_wish(wish: AuthorityWish) -> None:
    check_name(wish.name, "name")
    if wish.kind == "intermediate" and not wish.issuer:
        raise TrustError(f"authority {wish.name!r}: an intermediate needs issuer, the name of the root that signs it")
    if wish.kind == "root" and wish.issuer:
        raise TrustError(f"authority {wish.name!r}: a root signs itself; leave issuer out")
    if wish.path_length < (1 if wish.kind == "root" else 0):
        raise TrustError(f"authority {wish.name!r}: path_length {wish.path_length} is too small for a {wish.kind}")
    if not wish.common_name or not wish.key_label:
        raise TrustError(f"authority {wish.name!r}: common_name and key_label may not be empty")


def rotation_reason(wish: AuthorityWish, found: Authority | None, moment: datetime) -> str:
    """Why a new generation is needed, in words; empty when the current one does. Raises if the wish contradicts it."""
    if found is None or not found.generations:
        return "there is none yet"
    if (found.kind, found.issuer) != (wish.kind, wish.issuer):
        raise TrustError(
            f"authority {wish.name!r} is already a {found.kind} (issuer {found.issuer or 'itself'}); it cannot become"
            f" a {wish.kind} (issuer {wish.issuer or 'itself'}); choose another name"
        )
    if wish.rotate:
        return "asked for"
    left = build.remaining(from_iso(found.current.not_before), from_iso(found.current.not_after), moment)
    if left < wish.renew_at:
        return f"{max(left, 0):.0%} of its life remain"
    return ""


def retire(authority: Authority, entries: Sequence[Issued], moment: datetime) -> Authority:
    """Marks old generations as retired once nothing that they issued is still valid."""
    busy = {item.generation for item in entries if from_iso(item.not_after) > moment} | {authority.current.number}
    generations = tuple(
        replace(item, retired=item.retired or item.number not in busy) for item in authority.generations
    )
    return replace(authority, generations=generations)


def new_generation(
    store: Store, session: hsm.Session, wish: AuthorityWish, found: Authority | None, *, moment: datetime, secret: str
) -> Authority:
    """Makes key and certificate of the next generation and records them; older generations stay in force."""
    number = found.current.number + 1 if found and found.generations else 1
    label = f"{wish.key_label}-g{number}"
    # A key without a recorded certificate is what a run that was cut short left behind: use it.
    key = session.find_key(label) or session.generate(label, wish.curve)
    if key.extractable or not key.sensitive:
        raise TrustError(f"key {label!r} in token {session.info.label!r} may leave the token; remove it")
    own = TokenSigner(session, key)
    issuer, signer, issuer_generation = None, own, 0
    if wish.kind == "intermediate":
        parent = store.get(wish.issuer)
        issuer_generation = parent.current.number
        issuer = store.certificate(parent.name, issuer_generation)
        signer = signer_for(session, parent.current.key_label, issuer)
    start, end = build.validity(moment, wish.life, wish.backdate, issuer)
    spec = build.AuthoritySpec(
        f"{wish.common_name} G{number}",
        wish.organization,
        start,
        end,
        wish.path_length,
        wish.permitted_dns,
        wish.permitted_uris,
    )
    certificate = build.pem_without(lambda: build.authority_certificate(spec, own.public_key, issuer, signer), secret)
    serial = build.serial_text(certificate.serial_number)
    if wish.kind == "intermediate":
        entry = Issued(serial, "", wish.name, issuer_generation, iso(start), iso(end), build.fingerprint(certificate))
        store.save_index(wish.issuer, [*store.index(wish.issuer), entry], moment)
    store.save_certificate(wish.name, number, certificate)
    base = found or Authority(wish.name, wish.kind, wish.issuer, session.info.label)
    generation = Generation(number, label, serial, iso(start), iso(end), issuer_generation)
    authority = retire(replace(base, generations=(*base.generations, generation)), store.index(wish.name), moment)
    store.save(authority)
    return authority


@dataclass(frozen=True)
class LeafRequest:
    """One CSR and what may be granted to it. ``host`` and ``identity`` go to the index and to error messages."""

    host: str
    identity: str
    authority: str
    csr: str
    names: build.Names
    common_name: str
    organization: str = ""

    @property
    def where(self) -> str:
        return f"{self.host}/{self.identity}"


def check_requests(store: Store, requests: Sequence[LeafRequest]) -> list[Any]:
    """The public key of every request; raises one TrustError with everything that is wrong with any of them."""
    keys: list[Any] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    for request in requests:
        try:
            authority = store.get(request.authority)
            if not request.names.labelled():
                raise TrustError("no name is granted; give at least one URI, DNS name or address")
            key = build.check_request(request.csr, request.names)
            if any(
                build.same_key(key, store.certificate(authority.name, item.number).public_key())
                for item in authority.generations
            ):
                raise TrustError("the CSR's key is the authority's own key")
            print_ = build.key_fingerprint(key)
            if print_ in seen:
                raise TrustError(f"the CSR's key is the same as that of {seen[print_]}; every identity needs its own")
            seen[print_] = request.where
            keys.append(key)
        except NotReadyError:
            raise
        except TrustError as error:
            problems.append(f"{request.where}: {error}")
    if problems:
        raise TrustError("; ".join(problems))
    return keys


def issue(
    store: Store,
    session: hsm.Session,
    requests: Sequence[LeafRequest],
    *,
    life: timedelta,
    backdate: timedelta,
    moment: datetime,
    secret: str,
) -> list[dict[str, Any]]:
    """Signs all requests and records them in the index before anything is returned."""
    keys = check_requests(store, requests)
    signers: dict[str, tuple[Any, TokenSigner, int]] = {}
    entries: dict[str, list[Issued]] = {}
    results = []
    for request, key in zip(requests, keys):
        if request.authority not in signers:
            current = store.get(request.authority).current
            issuer = store.certificate(request.authority, current.number)
            signers[request.authority] = (issuer, signer_for(session, current.key_label, issuer), current.number)
        issuer, signer, number = signers[request.authority]
        start, end = build.validity(moment, life, backdate, issuer)
        spec = build.LeafSpec(request.common_name, request.organization, request.names, start, end)
        leaf = build.pem_without(_leaf_maker(spec, key, issuer, signer), secret)
        serial = build.serial_text(leaf.serial_number)
        entry = Issued(serial, request.host, request.identity, number, iso(start), iso(end), build.key_fingerprint(key))
        entries.setdefault(request.authority, []).append(entry)
        results.append(
            {
                "host": request.host,
                "identity": request.identity,
                "authority": request.authority,
                "generation": number,
                "serial": serial,
                "not_before": iso(start),
                "not_after": iso(end),
                "certificate": build.pem(leaf) + build.pem(issuer),
            }
        )
    for name, fresh in entries.items():
        store.save_index(name, [*store.index(name), *fresh], moment)
    return results


def _leaf_maker(spec: build.LeafSpec, key: Any, issuer: Any, signer: TokenSigner) -> Callable[[], Any]:
    return lambda: build.leaf_certificate(spec, key, issuer, signer)


@dataclass(frozen=True)
class Revocation:
    """Which certificates to revoke: one serial, or everything valid of a host and/or an identity."""

    serial: str = ""
    host: str = ""
    identity: str = ""
    authority: str = ""
    reason: str = "unspecified"

    def describe(self) -> str:
        given = {"serial": self.serial, "host": self.host, "identity": self.identity, "authority": self.authority}
        return ", ".join(f"{key} {value}" for key, value in given.items() if value)

    def matches(self, authority: str, entry: Issued) -> bool:
        return (
            self.authority in ("", authority)
            and (not self.serial or self.serial.lower().replace(":", "").zfill(40) == entry.serial)
            and self.host in ("", entry.host)
            and self.identity in ("", entry.identity)
        )


def revoke(
    indexes: dict[str, list[Issued]], wanted: Sequence[Revocation], moment: datetime
) -> tuple[dict[str, list[Issued]], list[str]]:
    """The indexes with the wanted revocations entered, and the serials that are newly revoked.

    Certificates that have ended or are revoked already are left alone. Raises TrustError when a wish matches nothing
    that was ever issued, because then it is most likely misspelt.
    """
    for item in wanted:
        if not (item.serial or item.host or item.identity):
            raise TrustError(
                "revoke: give serial, host or identity; an authority alone would revoke everything it issued"
            )
        if not any(item.matches(name, entry) for name, entries in indexes.items() for entry in entries):
            raise TrustError(f"revoke: no certificate was issued for {item.describe()}")
    result: dict[str, list[Issued]] = {}
    fresh: list[str] = []
    for name, entries in indexes.items():
        result[name] = []
        for entry in entries:
            hit = next((item for item in wanted if item.matches(name, entry)), None)
            if hit and not entry.revoked_at and from_iso(entry.not_after) > moment:
                fresh.append(entry.serial)
                result[name].append(replace(entry, revoked_at=iso(moment), reason=hit.reason))
            else:
                result[name].append(entry)
    return result, fresh


def revoked_entries(entries: Sequence[Issued], generation: int, moment: datetime) -> list[build.Revoked]:
    """What a generation's list names: revoked and not yet expired (RFC 5280 3.3 lets expired ones go)."""
    return [
        build.Revoked(int(item.serial, 16), from_iso(item.revoked_at), item.reason or "unspecified")
        for item in entries
        if item.generation == generation and item.revoked_at and from_iso(item.not_after) > moment
    ]


def crl_reason(
    crl: Any | None, certificate: Any, wanted: Sequence[build.Revoked], renew_at: float, moment: datetime
) -> str:
    """Why a list has to be signed again, in words; empty when the present one does."""
    if crl is None:
        return "there is none yet"
    if crl.issuer != certificate.subject or not crl.is_signature_valid(certificate.public_key()):
        return "it was not signed by this authority"
    listed = {item.serial_number for item in crl}
    if {item.serial for item in wanted} - listed:
        return "a certificate was revoked"
    left = build.remaining(crl.last_update_utc, crl.next_update_utc, moment)
    if left < renew_at:
        return f"{max(left, 0):.0%} of its life remain"
    return ""


@dataclass(frozen=True)
class ListWork:
    """One generation's revocation list and why it has to be signed again (empty: it does not)."""

    authority: Authority
    generation: Generation
    certificate: Any
    entries: list[build.Revoked]
    crl: Any | None
    reason: str


def plan_lists(
    store: Store, indexes: dict[str, list[Issued]], renew_at: float, force: Sequence[str], moment: datetime
) -> list[ListWork]:
    """The lists of all live generations of all authorities. ``force``: names whose lists are signed again anyway."""
    work = []
    for name in store.names():
        authority = store.get(name)
        for generation in authority.live(moment):
            certificate = store.certificate(name, generation.number)
            crl = store.crl(name, generation.number)
            entries = revoked_entries(indexes[name], generation.number, moment)
            reason = crl_reason(crl, certificate, entries, renew_at, moment)
            work.append(
                ListWork(
                    authority, generation, certificate, entries, crl, reason or ("asked for" if name in force else "")
                )
            )
    return work


def sign_lists(
    store: Store,
    session: hsm.Session,
    work: Sequence[ListWork],
    *,
    life: timedelta,
    backdate: timedelta,
    moment: datetime,
    secret: str,
) -> list[ListWork]:
    """Signs the lists that need it. The number is recorded first, so that it never repeats (RFC 5280 5.2.3)."""
    done = []
    for item in work:
        if not item.reason:
            done.append(item)
            continue
        signer = signer_for(session, item.generation.key_label, item.certificate)
        authority = store.get(item.authority.name)
        key = str(item.generation.number)
        number = max(authority.crl_numbers.get(key, 0), crl_number(item.crl)) + 1
        store.save(replace(authority, crl_numbers={**authority.crl_numbers, key: number}))
        start = max(moment - backdate, item.certificate.not_valid_before_utc)
        crl = build.pem_without(_list_maker(item, signer, number, start, moment + life), secret)
        store.save_crl(item.authority.name, item.generation.number, crl)
        done.append(replace(item, crl=crl))
    return done


def _list_maker(item: ListWork, signer: TokenSigner, number: int, start: datetime, end: datetime) -> Callable[[], Any]:
    return lambda: build.revocation_list(
        item.certificate, signer, number=number, updated=start, next_update=end, entries=item.entries
    )


def crl_number(crl: Any | None) -> int:
    return build.crl_number(crl) if crl is not None else 0


def describe_list(item: ListWork) -> dict[str, Any]:
    return {
        "authority": item.authority.name,
        "generation": item.generation.number,
        "number": crl_number(item.crl),
        "next_update": iso(item.crl.next_update_utc) if item.crl is not None else "",
        "revoked": len(item.entries) if item.crl is None else len(list(item.crl)),
        "reason": item.reason,
    }

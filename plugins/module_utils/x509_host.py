# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identities on the host that uses them: private keys are made here and stay here.

<path>/<identity>/current -> gen-<serial>          swapped by rename, so all files of a generation change at once
<path>/<identity>/gen-<serial>/{key,cert,ca,crl}.pem
<path>/<identity>/gen-<serial>.<n>/                the same leaf with newer ca.pem or crl.pem
<path>/<identity>/.pending/key.pem                 key of a CSR that is not answered yet
"""

from __future__ import annotations

import contextlib
import grp
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils import x509_build as build
from ansible_collections.causeway.platform.plugins.module_utils.x509_common import (
    TrustError,
    check_name,
    fsync_directory,
    iso,
    mode_of,
    write_file,
)

with contextlib.suppress(ImportError):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

FILES = {"key.pem": 0o640, "cert.pem": 0o644, "ca.pem": 0o644, "crl.pem": 0o644}
_GENERATION = re.compile(r"gen-([0-9a-f]{1,40})(?:\.(\d+))?\Z")


@dataclass(frozen=True)
class Identity:
    """What a certificate on this host shall say, and the unix group that may read its key."""

    name: str
    names: build.Names
    group: str
    common_name: str


@dataclass(frozen=True)
class Installed:
    """What the current generation of an identity holds; ``problems`` are reasons to replace the certificate."""

    directory: str = ""
    serial: str = ""
    not_before: datetime | None = None
    not_after: datetime | None = None
    names: build.Names = field(default_factory=build.Names)
    issuer: str = ""
    ca: str = ""
    crl: str = ""
    problems: tuple[str, ...] = ()

    def summary(self) -> dict[str, str]:
        """For diffs and results: nothing secret."""
        return {
            "generation": self.directory,
            "serial": self.serial,
            "not_after": iso(self.not_after) if self.not_after else "",
            "names": ", ".join(self.names.labelled()),
        }


def inspect(path: Path, identity: str) -> Installed:
    """Reads the current generation; every defect becomes a problem in words, never an exception."""
    link = path / identity / "current"
    if not link.is_symlink():
        return Installed(problems=("there is none yet",))
    directory = str(link.readlink()) if hasattr(link, "readlink") else os.readlink(link)  # noqa: PTH115
    base = link.parent / directory
    if not _GENERATION.fullmatch(directory) or not base.is_dir():
        return Installed(problems=("current points to nothing",))
    problems: list[str] = []
    texts = {}
    for name in FILES:
        try:
            texts[name] = (base / name).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            texts[name] = ""
    found = Installed(directory=directory, ca=texts["ca.pem"], crl=texts["crl.pem"])
    try:
        chain = build.parse_certificates(texts["cert.pem"], "cert.pem")
    except TrustError:
        chain = []
    if len(chain) != 2:
        return replace(found, problems=("cert.pem is missing or damaged",))
    leaf, issuer = chain
    try:
        key: Any = serialization.load_pem_private_key(texts["key.pem"].encode(), None)
    except (ValueError, TypeError):
        problems.append("key.pem is missing or damaged")
    else:
        if not build.same_key(key.public_key(), leaf.public_key()):
            problems.append("key.pem does not belong to cert.pem")
    if not build.issued_by(leaf, issuer):
        problems.append("cert.pem does not chain")
    try:
        names = build.names_of(leaf.extensions)
    except (TrustError, ValueError):
        names = build.Names()
    return replace(
        found,
        serial=build.serial_text(leaf.serial_number),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        names=names,
        issuer=build.fingerprint(issuer),
        problems=tuple(problems),
    )


def revoked_serials(crl: str) -> set[str]:
    """All serials that the bundle names; they are random 20-octet numbers, so no issuer tells them apart."""
    return {build.serial_text(item.serial_number) for part in build.parse_crls(crl) for item in part}


def reasons(
    found: Installed,
    identity: Identity,
    *,
    issuer: str,
    revoked: set[str],
    renew_at: float,
    moment: datetime,
    force: bool,
) -> list[str]:
    """Why a new certificate is needed; empty when the installed one does. Pure."""
    result = list(found.problems)
    if found.not_before and found.not_after:
        if found.names != identity.names:
            result.append("its names changed")
        if issuer and found.issuer != issuer:
            result.append("its issuer is no longer the current one")
        if found.serial in revoked:
            result.append("it was revoked")
        left = build.remaining(found.not_before, found.not_after, moment)
        if left < renew_at:
            result.append(f"{max(left, 0):.0%} of its life remain")
    if force:
        result.append("asked for")
    return result


def check_clock(local: datetime, reference: datetime | None, tolerance: timedelta) -> None:
    """Refuses a host whose clock would make it reject or outlive certificates."""
    if reference is None:
        return
    skew = (local - reference).total_seconds()
    if abs(skew) > tolerance.total_seconds():
        raise TrustError(
            f"the clock of this host is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the trust authority's"
            f" (allowed: {tolerance.total_seconds():.0f} s); set up time synchronisation first"
        )


def check_identities(identities: Sequence[Identity]) -> None:
    names = [item.name for item in identities]
    for item in identities:
        check_name(item.name, "identity")
        if not item.names.labelled():
            raise TrustError(f"identity {item.name!r}: give at least one URI, DNS name or address")
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", item.group):
            raise TrustError(
                f"identity {item.name!r}: {item.group!r} is no name for a unix group (31 characters at most)"
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TrustError(f"identity {twice[0]!r} is listed twice")


def group_id(name: str) -> int:
    """Numeric id, or -1 if the group does not exist."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return -1


def sysusers_text(identities: Sequence[Identity], present: str) -> str:
    """The sysusers.d file with one group per identity; groups of earlier identities stay, their ids may own files."""
    old = {line.split()[1] for line in present.splitlines() if line.startswith("g ") and len(line.split()) > 1}
    groups = sorted(old | {item.group for item in identities if item.group.startswith("causeway-tls-")})
    return "# Made by the role causeway.platform.trust: who may read which private key.\n" + "".join(
        f"g {name} -\n" for name in groups
    )


def make_request(path: Path, identity: Identity) -> str:
    """A new private key in ``.pending`` and the CSR for it. The key is on disk before the CSR exists."""
    base = path / identity.name
    pending = base / ".pending"
    base.mkdir(mode=0o750, parents=True, exist_ok=True)
    pending.mkdir(mode=0o700, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_file(pending / "key.pem", data, 0o600)
    names: list[Any] = [x509.UniformResourceIdentifier(item) for item in identity.names.uris]
    names += [x509.DNSName(item) for item in identity.names.dns]
    names += [x509.IPAddress(build.address(item)) for item in identity.names.addresses]
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.common_name[:64])]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    return build.pem(request)


def check_answer(path: Path, identity: Identity, chain: str, ca: str) -> tuple[bytes, str]:
    """The pending key and the leaf's serial, if the certificate fits the key, the identity and the roots."""
    certificates = build.parse_certificates(chain, "the certificate")
    if len(certificates) != 2:
        raise TrustError("the certificate does not come with its intermediate")
    leaf, issuer = certificates
    try:
        key = (path / identity.name / ".pending" / "key.pem").read_bytes()
        private: Any = serialization.load_pem_private_key(key, None)
    except (OSError, ValueError) as error:
        raise TrustError("there is no pending key; the certificate answers a request of another run") from error
    if not build.same_key(private.public_key(), leaf.public_key()):
        raise TrustError("the certificate was made for another key than the pending one")
    if build.names_of(leaf.extensions) != identity.names:
        raise TrustError(f"the certificate names {', '.join(build.names_of(leaf.extensions).labelled())}")
    roots = build.parse_certificates(ca, "ca")
    if not build.issued_by(leaf, issuer) or not any(build.issued_by(issuer, root) for root in roots):
        raise TrustError("the certificate does not chain to a root in ca")
    return key, build.serial_text(leaf.serial_number)


def _free_directory(base: Path, serial: str) -> str:
    numbers = [
        int(match.group(2) or 0)
        for match in (_GENERATION.fullmatch(item.name) for item in base.iterdir())
        if match and match.group(1) == serial
    ]
    return f"gen-{serial}.{max(numbers) + 1}" if numbers else f"gen-{serial}"


def install_generation(path: Path, identity: Identity, serial: str, contents: dict[str, bytes]) -> str:
    """Writes a whole generation beside the others, then points ``current`` to it by one rename."""
    base = path / identity.name
    gid = group_id(identity.group)
    if gid < 0:
        raise TrustError(
            f"group {identity.group!r} does not exist on this host; name sysusers_file, or make the group first"
        )
    base.mkdir(mode=0o750, parents=True, exist_ok=True)
    os.chown(base, -1, gid)
    base.chmod(0o750)
    staged = base / f".staged-{secrets.token_hex(4)}"
    staged.mkdir(mode=0o750)
    os.chown(staged, -1, gid)
    staged.chmod(0o750)
    for name, data in contents.items():
        write_file(staged / name, data, FILES[name], gid)
    directory = _free_directory(base, serial)
    staged.rename(base / directory)
    link = base / f".current-{secrets.token_hex(4)}"
    link.symlink_to(directory)
    link.replace(base / "current")
    fsync_directory(base)
    return directory


def prune(path: Path, identity: str, keep: int) -> list[str]:
    """Removes what earlier runs left: unfinished directories, and generations older than the newest ``keep``."""
    base = path / identity
    current = os.readlink(base / "current")  # noqa: PTH115
    old = [item for item in base.iterdir() if _GENERATION.fullmatch(item.name) and item.name != current]
    old.sort(key=lambda item: item.stat().st_mtime_ns, reverse=True)
    doomed = old[max(keep - 1, 0) :]
    doomed += [item for item in base.iterdir() if item.name == ".pending" or item.name.startswith(".staged-")]
    for item in doomed:
        shutil.rmtree(item)
    for item in base.iterdir():
        if item.name.startswith(".current-"):
            item.unlink()
    return sorted(item.name for item in doomed)


def wrong_permissions(path: Path, identity: Identity, directory: str) -> list[tuple[Path, int, int]]:
    """Files of the current generation whose owner, group or mode is not as it shall be: path, mode, gid."""
    gid = group_id(identity.group)
    base = path / identity.name
    wanted = [
        (base, 0o750),
        (base / directory, 0o750),
        *((base / directory / name, mode) for name, mode in FILES.items()),
    ]
    result = []
    for item, mode in wanted:
        state = item.lstat()
        if mode_of(item) != mode or state.st_uid != os.geteuid() or (gid >= 0 and state.st_gid != gid):
            result.append((item, mode, gid))
    return result


def repair_permissions(wrong: Sequence[tuple[Path, int, int]]) -> None:
    for item, mode, gid in wrong:
        os.chown(item, os.geteuid(), gid, follow_symlinks=False)
        item.chmod(mode)

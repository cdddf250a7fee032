# Copyright (c) 2026, the causeway.platform authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A PKCS#11 token as the trust root uses it: find it, initialise it, make keys in it, sign digests with them.

The PIN is only ever handed to the library inside this process. Signing runs in the module's short-lived process, so
that no server ever loads a PKCS#11 provider.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.causeway.platform.plugins.module_utils.x509_common import NotReadyError, TrustError

PYKCS11_IMPORT_ERROR: str | None = None
try:
    import PyKCS11
except ImportError:
    PYKCS11_IMPORT_ERROR = traceback.format_exc()

CURVES = {"P-256": bytes.fromhex("06082a8648ce3d030107"), "P-384": bytes.fromhex("06052b81040022")}
_SOFTHSM_PATHS = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/*/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
# Kept until the process ends: PyKCS11 finalises a library under open sessions when it drops the last reference.
_LIBRARIES: dict[str, Any] = {}
# Flags of CK_TOKEN_INFO, PKCS#11 2.40 section 3.2.
_INITIALIZED, _USER_PIN_SET = 0x400, 0x8
_USER_PIN_FINAL_TRY, _USER_PIN_LOCKED = 0x20000, 0x40000
_SO_PIN_FINAL_TRY, _SO_PIN_LOCKED = 0x200000, 0x400000
_SENTENCES = {
    "CKR_PIN_INCORRECT": "the PIN is wrong",
    "CKR_PIN_LOCKED": "the PIN is locked after too many wrong attempts; unlock the token with the SO PIN",
    "CKR_PIN_INVALID": "the token does not accept the characters of this PIN",
    "CKR_PIN_LEN_RANGE": "the PIN is shorter or longer than the token allows",
    "CKR_PIN_EXPIRED": "the PIN has expired and must be changed",
    "CKR_USER_PIN_NOT_INITIALIZED": "the token has no user PIN yet",
    "CKR_TOKEN_NOT_PRESENT": "there is no token in the slot",
    "CKR_TOKEN_NOT_RECOGNIZED": "the token is damaged or of another vendor",
    "CKR_TOKEN_WRITE_PROTECTED": "the token is write-protected",
    "CKR_DEVICE_MEMORY": "the token has no room left",
    "CKR_DEVICE_REMOVED": "the token was removed",
    "CKR_MECHANISM_INVALID": "the token does not know this mechanism (ECDSA and EC key generation are needed)",
    "CKR_FUNCTION_NOT_SUPPORTED": "the vendor's module does not support this function",
    "CKR_SESSION_COUNT": "the token has no session left",
}


@dataclass(frozen=True)
class TokenInfo:
    """One slot that holds a token, as the library reports it."""

    slot: int
    label: str
    serial: str
    flags: int

    @property
    def initialized(self) -> bool:
        return bool(self.flags & _INITIALIZED)

    @property
    def user_pin_set(self) -> bool:
        return bool(self.flags & _USER_PIN_SET)


@dataclass(frozen=True)
class TokenConfig:
    """Where the token is and the user PIN that opens it."""

    token: str
    pin: str = field(repr=False)
    module: str = ""
    slot: int | None = None
    serial: str = ""


@dataclass(frozen=True)
class KeyInfo:
    """An EC key pair in the token; ``point`` is the uncompressed public point."""

    label: str
    key_id: str
    curve: str
    point: bytes
    sensitive: bool
    extractable: bool


def find_module(path: str) -> str:
    """The PKCS#11 library's path: the given one if it exists, else SoftHSM2's where distributions put it."""
    if path:
        if not Path(path).is_file():
            raise NotReadyError(
                f"PKCS#11 module {path} does not exist on this host; set pkcs11_module to the vendor's library"
            )
        return path
    for pattern in _SOFTHSM_PATHS:
        found = sorted(glob.glob(pattern))  # noqa: PTH207
        if found:
            return found[0]
    raise NotReadyError("SoftHSM2's libsofthsm2.so was not found on this host; install softhsm2 or set pkcs11_module")


def sentence(error: object) -> str:
    """A library error in words. Never contains a PIN: only the return code is used."""
    code = re.search(r"CKR_[A-Z0-9_]+", str(error))
    name = code.group(0) if code else ""
    return (
        f"{_SENTENCES[name]} ({name})" if name in _SENTENCES else f"the library answered {name or 'an unknown error'}"
    )


def choose(tokens: Sequence[TokenInfo], label: str, slot: int | None, serial: str = "") -> TokenInfo | None:
    """The one initialised token that is meant, or None. Raises if that is ambiguous or the slot holds another one."""
    found = [item for item in tokens if item.initialized and item.label == label]
    if serial:
        found = [item for item in found if item.serial == serial]
    if slot is not None:
        there = [item for item in tokens if item.slot == slot]
        if there and there[0].initialized and there[0] not in found:
            raise TrustError(
                f"slot {slot} holds the token {there[0].label!r} (serial {there[0].serial}), not {label!r}"
            )
        found = [item for item in found if item.slot == slot]
    if len(found) > 1:
        listing = ", ".join(f"slot {item.slot} serial {item.serial}" for item in found)
        raise TrustError(
            f"{len(found)} tokens are labelled {label!r} ({listing}); set slot or serial to say which one is meant"
        )
    return found[0] if found else None


def check_usable(info: TokenInfo, so: bool = False) -> None:
    """Refuses a locked token, and one whose last try a wrong PIN would use up."""
    who = "SO" if so else "user"
    if info.flags & (_SO_PIN_LOCKED if so else _USER_PIN_LOCKED):
        raise TrustError(
            f"token {info.label!r}: the {who} PIN is locked after too many wrong attempts; unlock it first"
        )
    if info.flags & (_SO_PIN_FINAL_TRY if so else _USER_PIN_FINAL_TRY):
        raise TrustError(
            f"token {info.label!r}: one attempt is left before the {who} PIN locks;"
            " log in once by hand with the right PIN first"
        )
    if not so and not info.user_pin_set:
        raise TrustError(f"token {info.label!r} has no user PIN yet; hsm_token with the SO PIN sets it")


def load(path: str) -> Any:
    """The loaded and initialised PKCS#11 library."""
    if PYKCS11_IMPORT_ERROR:
        raise NotReadyError("the Python library PyKCS11 is not installed on this host (Debian: python3-pykcs11)")
    found = find_module(path)
    if found in _LIBRARIES:
        return _LIBRARIES[found]
    library = PyKCS11.PyKCS11Lib()
    try:
        library.load(found)
    except PyKCS11.PyKCS11Error as error:
        raise TrustError(
            f"PKCS#11 module {found} could not be loaded: {sentence(error)}; SoftHSM2 also needs its token directory"
        ) from error
    _LIBRARIES[found] = library
    return library


def _tokens(library: Any) -> list[TokenInfo]:
    result = []
    for slot in library.getSlotList(tokenPresent=True):
        try:
            info = library.getTokenInfo(slot)
        except PyKCS11.PyKCS11Error:  # a slot that vanished or holds a card of no known kind is not ours
            continue
        result.append(
            TokenInfo(int(slot), str(info.label).strip("\0 "), str(info.serialNumber).strip("\0 "), int(info.flags))
        )
    return result


def find_token(config: TokenConfig) -> TokenInfo | None:
    """The token that the configuration means, or None. No PIN is used."""
    return choose(_tokens(load(config.module)), config.token, config.slot, config.serial)


def _login(library: Any, info: TokenInfo, pin: str, so: bool = False) -> Any:
    check_usable(info, so)
    session = library.openSession(info.slot, PyKCS11.CKF_SERIAL_SESSION | PyKCS11.CKF_RW_SESSION)
    try:
        session.login(pin, user_type=PyKCS11.CKU_SO if so else PyKCS11.CKU_USER)
    except PyKCS11.PyKCS11Error as error:
        session.closeSession()
        raise TrustError(f"token {info.label!r}: {'SO' if so else 'user'} login failed: {sentence(error)}") from error
    return session


def _close(session: Any) -> None:
    with contextlib.suppress(PyKCS11.PyKCS11Error):
        session.logout()
    with contextlib.suppress(PyKCS11.PyKCS11Error):
        session.closeSession()


def pin_works(config: TokenConfig, info: TokenInfo, pin: str, so: bool = False) -> bool:
    """Whether this PIN opens the token. Raises if the token is locked or in danger of it."""
    check_usable(info, so)
    library = load(config.module)
    session = library.openSession(info.slot, PyKCS11.CKF_SERIAL_SESSION | PyKCS11.CKF_RW_SESSION)
    try:
        session.login(pin, user_type=PyKCS11.CKU_SO if so else PyKCS11.CKU_USER)
    except PyKCS11.PyKCS11Error as error:
        if re.search("CKR_PIN_(INCORRECT|LEN_RANGE|INVALID)", str(error)):
            return False
        raise TrustError(f"token {info.label!r}: login failed: {sentence(error)}") from error
    finally:
        _close(session)
    return True


def initialise(config: TokenConfig, so_pin: str) -> TokenInfo:
    """Initialises a blank token with the label and both PINs; never touches one that is initialised already."""
    library = load(config.module)
    blank = [item for item in _tokens(library) if not item.initialized and config.slot in (None, item.slot)]
    if not blank:
        where = "any slot" if config.slot is None else f"slot {config.slot}"
        raise TrustError(f"there is no blank token in {where} to initialise as {config.token!r}")
    try:
        library.initToken(blank[0].slot, so_pin, config.token)
    except PyKCS11.PyKCS11Error as error:
        raise TrustError(f"token {config.token!r} could not be initialised: {sentence(error)}") from error
    # SoftHSM gives the token a new slot: find it again by label.
    fresh = choose(_tokens(load(config.module)), config.token, None, config.serial)
    if fresh is None:
        raise TrustError(f"token {config.token!r} was initialised but cannot be found again")
    set_user_pin(config, fresh, so_pin)
    return fresh


def set_user_pin(config: TokenConfig, info: TokenInfo, so_pin: str) -> None:
    """Sets the user PIN as security officer (a new token, or one whose initialisation was cut short)."""
    session = _login(load(config.module), info, so_pin, so=True)
    try:
        session.initPin(config.pin)
    except PyKCS11.PyKCS11Error as error:
        raise TrustError(f"token {info.label!r}: the user PIN could not be set: {sentence(error)}") from error
    finally:
        _close(session)


def change_pin(config: TokenConfig, info: TokenInfo, old: str, new: str, so: bool = False) -> None:
    session = _login(load(config.module), info, old, so)
    try:
        session.setPin(old, new)
    except PyKCS11.PyKCS11Error as error:
        raise TrustError(f"token {info.label!r}: the PIN could not be changed: {sentence(error)}") from error
    finally:
        _close(session)


def key_id_of(label: str) -> str:
    """CKA_ID of a key that was not given one: stable, so that a repeated run means the same key."""
    return hashlib.sha256(label.encode()).hexdigest()[:32]


def unwrap_point(value: bytes) -> bytes:
    """CKA_EC_POINT is a DER OCTET STRING around the point (PKCS#11 2.40 2.3.3); some vendors leave the wrapping out."""
    if len(value) in (67, 99) and value[0] == 0x04 and value[1] == len(value) - 2:
        return value[2:]
    return value


class Session:
    """A logged-in session. Use ``open_token``."""

    def __init__(self, session: Any, info: TokenInfo) -> None:
        self._session = session
        self.info = info

    def _handles(self, kind: int, label: str) -> list[Any]:
        return list(self._session.findObjects([(PyKCS11.CKA_CLASS, kind), (PyKCS11.CKA_LABEL, label)]))

    def _private(self, label: str) -> Any:
        found = self._handles(PyKCS11.CKO_PRIVATE_KEY, label)
        if len(found) > 1:
            raise TrustError(
                f"token {self.info.label!r} holds {len(found)} private keys labelled {label!r}; remove all but one"
            )
        return found[0] if found else None

    def find_key(self, label: str) -> KeyInfo | None:
        """The key pair with this label, or None. Raises if it is incomplete, ambiguous or no EC key."""
        private = self._private(label)
        public = self._handles(PyKCS11.CKO_PUBLIC_KEY, label)
        if private is None:
            if public:
                raise TrustError(
                    f"token {self.info.label!r} holds the public half of key {label!r} but not the private one"
                )
            return None
        if len(public) != 1:
            raise TrustError(
                f"token {self.info.label!r} holds {len(public)} public halves of key {label!r}; exactly one is needed"
            )
        params, point = self._session.getAttributeValue(public[0], [PyKCS11.CKA_EC_PARAMS, PyKCS11.CKA_EC_POINT])
        sensitive, extractable, key_id = self._session.getAttributeValue(
            private, [PyKCS11.CKA_SENSITIVE, PyKCS11.CKA_EXTRACTABLE, PyKCS11.CKA_ID]
        )
        curve = next((name for name, oid in CURVES.items() if oid == bytes(params or ())), "")
        if not curve:
            raise TrustError(
                f"key {label!r} in token {self.info.label!r} is not on a curve that is allowed (P-256, P-384)"
            )
        return KeyInfo(
            label, bytes(key_id).hex(), curve, unwrap_point(bytes(point)), bool(sensitive), bool(extractable)
        )

    def generate(self, label: str, curve: str, key_id: str = "") -> KeyInfo:
        """A new EC key pair whose private half cannot leave the token."""
        ident = tuple(bytes.fromhex(key_id or key_id_of(label)))
        common = [(PyKCS11.CKA_TOKEN, True), (PyKCS11.CKA_LABEL, label), (PyKCS11.CKA_ID, ident)]
        public = [
            *common,
            (PyKCS11.CKA_CLASS, PyKCS11.CKO_PUBLIC_KEY),
            (PyKCS11.CKA_VERIFY, True),
            (PyKCS11.CKA_PRIVATE, False),
            (PyKCS11.CKA_EC_PARAMS, tuple(CURVES[curve])),
        ]
        private = [
            *common,
            (PyKCS11.CKA_CLASS, PyKCS11.CKO_PRIVATE_KEY),
            (PyKCS11.CKA_KEY_TYPE, PyKCS11.CKK_EC),
            (PyKCS11.CKA_PRIVATE, True),
            (PyKCS11.CKA_SENSITIVE, True),
            (PyKCS11.CKA_EXTRACTABLE, False),
            (PyKCS11.CKA_SIGN, True),
            (PyKCS11.CKA_DECRYPT, False),
            (PyKCS11.CKA_UNWRAP, False),
        ]
        try:
            self._session.generateKeyPair(public, private, PyKCS11.Mechanism(PyKCS11.CKM_EC_KEY_PAIR_GEN, None))
        except PyKCS11.PyKCS11Error as error:
            raise TrustError(
                f"key {label!r} could not be made in token {self.info.label!r}: {sentence(error)}"
            ) from error
        made = self.find_key(label)
        if made is None or made.extractable or not made.sensitive:
            raise TrustError(f"key {label!r} in token {self.info.label!r} did not become sensitive and non-extractable")
        return made

    def destroy(self, label: str) -> None:
        try:
            for kind in (PyKCS11.CKO_PRIVATE_KEY, PyKCS11.CKO_PUBLIC_KEY):
                for handle in self._handles(kind, label):
                    self._session.destroyObject(handle)
        except PyKCS11.PyKCS11Error as error:
            raise TrustError(
                f"key {label!r} in token {self.info.label!r} could not be removed: {sentence(error)}"
            ) from error

    def sign(self, label: str, digest: bytes) -> bytes:
        """Plain ECDSA over a digest that was made outside (SoftHSM 2.6 has no hashed ECDSA); returns r || s."""
        private = self._private(label)
        if private is None:
            raise NotReadyError(f"key {label!r} is not in token {self.info.label!r}")
        try:
            return bytes(self._session.sign(private, digest, PyKCS11.Mechanism(PyKCS11.CKM_ECDSA, None)))
        except PyKCS11.PyKCS11Error as error:
            raise TrustError(f"key {label!r} in token {self.info.label!r} could not sign: {sentence(error)}") from error


@contextlib.contextmanager
def open_token(config: TokenConfig) -> Iterator[Session]:
    """A session logged in as user. Raises NotReadyError without library or token, TrustError for a wrong PIN."""
    library = load(config.module)
    info = choose(_tokens(library), config.token, config.slot, config.serial)
    if info is None:
        raise NotReadyError(f"there is no token labelled {config.token!r} on this host; hsm_token initialises one")
    session = _login(library, info, config.pin)
    try:
        yield Session(session, info)
    finally:
        _close(session)

"""Keys and seals of a store: AES-256-GCM with a fresh random nonce for each file (NIST SP 800-38D, section 8.2.2).

What a file is for (user, round, kind) is bound into its seal, so that no file can stand in another one's place.
"""

import hashlib
import hmac
import importlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from client.store import disk
from configs.errors import InputError

KEYRING, SERVICE = "keyring:", "homing"
SIZE, NONCE = 32, 12  # bytes


@dataclass(frozen=True)
class Key:
    """A node's key."""

    secret: bytes = field(repr=False)  # `SIZE` bytes
    where: str  # a file, or "keyring:NAME"

    @property
    def id(self) -> str:
        """Eight characters that tell keys apart and nothing about them."""
        return hmac.digest(self.secret, b"homing store key", hashlib.sha256).hex()[:8]


def read(where: str) -> Key | None:
    """The key that ``where`` names, a file or "keyring:NAME"; None for "". Raises `InputError`."""
    if not where:
        return None
    text = _in_keyring(where) if where.startswith(KEYRING) else _in_file(Path(where))
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != SIZE:
        raise InputError(f"store-key: {where} holds no key: {2 * SIZE} hexadecimal digits, as 'store key {where}' makes them")
    return Key(secret, where)


def make(where: str) -> Key:
    """A new key, kept where ``where`` says. Raises `InputError` where something is there already."""
    text = os.urandom(SIZE).hex()
    if where.startswith(KEYRING):
        name, ring = where.removeprefix(KEYRING), _keyring()
        if ring.get_password(SERVICE, name) is not None:
            raise InputError(f"store-key: the keyring holds '{name}' already; choose another name")
        ring.set_password(SERVICE, name, text)
        return Key(bytes.fromhex(text), where)
    path = Path(where)
    if not path.parent.is_dir():
        raise InputError(f"store-key: {path} cannot be made: its folder does not exist")
    with disk.told(path):
        if not disk.create(path, f"{text}\n".encode()):
            raise InputError(f"store-key: {path} exists already; choose another name")
    return Key(bytes.fromhex(text), where)


def seal(secret: bytes, data: bytes, *bound: object) -> bytes:
    """Encrypt and sign ``data``: nonce [12], then ciphertext and tag [len(data) + 16]."""
    nonce = os.urandom(NONCE)
    return nonce + AESGCM(secret).encrypt(nonce, data, _words(bound))


def unseal(secret: bytes, data: bytes, *bound: object) -> bytes | None:
    """Undo `seal`; None where the key, what is bound or any bit is another."""
    try:
        return AESGCM(secret).decrypt(data[:NONCE], data[NONCE:], _words(bound))
    except (InvalidTag, ValueError):
        return None


def _words(bound: tuple[object, ...]) -> bytes:
    return json.dumps(["homing", *bound]).encode()


def _in_file(path: Path) -> str:
    try:
        mode = path.stat().st_mode & 0o777
        text = path.read_text().strip()
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"store-key: {path} cannot be read: {said}") from None
    if mode & 0o077:
        raise InputError(f"store-key: {path} has mode {mode:04o}, so that others may read it; make it 0600 (chmod 600 {path})")
    return text


def _in_keyring(where: str) -> str:
    name = where.removeprefix(KEYRING)
    found = _keyring().get_password(SERVICE, name)
    if found is None:
        raise InputError(f"store-key: the keyring holds no '{name}' of service '{SERVICE}'; 'store key {where}' makes one")
    return str(found)


def _keyring() -> Any:
    try:
        return importlib.import_module("keyring")
    except ImportError:
        raise InputError("store-key: keyring:NAME needs the package 'keyring'; install it, or name a file") from None

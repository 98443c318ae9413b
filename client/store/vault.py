"""How a store keeps files: in the clear, or sealed, so that without the node's key nobody reads what is in them, or whose they are.

Sealed, each user has a random key of their own, which lies beside their files, sealed with the node's key. A folder's name is a keyed
hash of the user's. ``store.json`` says which of the two a store is, and under which key.
"""

import hashlib
import hmac
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from client.store import disk, keys
from client.store.keys import Key
from configs.errors import InputError

HEAD, NEXT = "store.json", "store.next.json"  # what a store is, and what a rekey that goes on makes of it
MANIFEST = "manifest"
KEY = "key"  # a user's own, sealed
FORMAT = 1


class Vault(Protocol):
    """How files are kept. ``what`` says what data are for."""

    suffix: str  # of files of tensors
    words: str  # and of others

    def folder(self, user: str) -> str:
        """The name of a user's folder."""
        ...

    def begin(self, place: Path, flush: bool) -> None:
        """Make ready a user's empty folder."""
        ...

    def close(self, place: Path, data: bytes, *what: object) -> bytes:
        """What a file in the folder ``place`` holds for these data."""
        ...

    def open(self, place: Path, data: bytes, *what: object) -> bytes | None:
        """Undo `close`; None where that cannot be."""
        ...


class Plain:
    """In the clear."""

    suffix, words = ".safetensors", ".json"

    def folder(self, user: str) -> str:
        """A readable name."""
        return folder_name(user)

    def begin(self, place: Path, flush: bool) -> None:
        """Nothing is needed."""

    def close(self, place: Path, data: bytes, *what: object) -> bytes:  # noqa: ARG002 - the interface
        """The data."""
        return data

    def open(self, place: Path, data: bytes, *what: object) -> bytes | None:  # noqa: ARG002 - the interface
        """The data."""
        return data


class Sealed:
    """Sealed under a node's key."""

    suffix = words = ".sealed"

    def __init__(self, key: Key, names: bytes) -> None:
        """``names``: the secret that users' names are hashed with."""
        self.key, self.names = key, names

    def folder(self, user: str) -> str:
        """A keyed hash of the name."""
        return hmac.digest(self.names, user.encode(), hashlib.sha256).hex()[:32]

    def begin(self, place: Path, flush: bool) -> None:
        """Give the user a key, if there is none yet."""
        if not (place / KEY).exists():
            disk.write(place / KEY, keys.seal(self.key.secret, os.urandom(keys.SIZE), FORMAT, KEY, place.name), flush)

    def close(self, place: Path, data: bytes, *what: object) -> bytes:
        """Seal data for a user."""
        return keys.seal(self._own(place), data, FORMAT, place.name, *what)

    def open(self, place: Path, data: bytes, *what: object) -> bytes | None:
        """Undo `close`."""
        return keys.unseal(self._own(place), data, FORMAT, place.name, *what)

    def _own(self, place: Path) -> bytes:
        try:
            found = keys.unseal(self.key.secret, (place / KEY).read_bytes(), FORMAT, KEY, place.name)
        except FileNotFoundError:
            found = None
        if found is None:
            raise InputError(
                f"{place / KEY} is damaged or of another store: what it locks is closed; restore a backup, or forget the user"
            )
        return found


@dataclass(frozen=True)
class Head:
    """What ``store.json`` says."""

    id: str  # of the store, random
    key: str  # id of the node's key; "": in the clear
    names: str  # hex: the secret of `Sealed.names`, sealed with the node's key
    format: int = FORMAT

    @classmethod
    def new(cls, key: Key | None) -> "Head":
        """That of a store that begins."""
        mark = os.urandom(8).hex()
        return cls(mark, key.id, keys.seal(key.secret, os.urandom(keys.SIZE), FORMAT, mark).hex()) if key else cls(mark, "", "")

    def bytes(self) -> bytes:
        """Write it."""
        return json.dumps(asdict(self), indent=1).encode()

    def vault(self, folder: Path, key: Key | None) -> Vault:
        """How the store in ``folder`` keeps files. Raises `InputError` where ``key`` is not the one that it takes."""
        if key is None:
            if self.key:
                raise InputError(f"{folder} is sealed with key {self.key}; name it: store-key in the node config, or --key")
            return Plain()
        if not self.key:
            raise InputError(f"{folder} lies in the clear, and {key.where} is a key; seal it by 'store rekey', or name no key")
        names = keys.unseal(key.secret, bytes.fromhex(self.names), FORMAT, self.id)
        if names is None:
            which = "damaged" if self.key == key.id else f"sealed with key {self.key}, and {key.where} holds key {key.id}"
            raise InputError(f"{folder / HEAD} is {which}; nothing was changed")
        return Sealed(key, names)


def head(folder: Path, name: str = HEAD) -> Head | None:
    """What a store says of itself; None where none has begun. Raises `InputError`."""
    try:
        said: Any = json.loads((folder / name).read_bytes())
        found = Head(**said)
        bytes.fromhex(found.names)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{folder / name} is damaged; restore a backup of it") from None
    if found.format > FORMAT:
        raise InputError(f"{folder} has format {found.format}, and this program knows formats up to {FORMAT}; use a newer program")
    return found


def folder_name(user: str) -> str:
    """A file name for any user name: its safe characters, and a digest that keeps equal-looking names apart."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in user)[:40]
    return f"{safe}-{hashlib.blake2b(user.encode(), digest_size=4).hexdigest()}"

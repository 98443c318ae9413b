"""Another key for a store, or the first one, or none. Cut off anywhere, the same command goes on; until then the store says so."""

from pathlib import Path

from client.private import LOCKS, PrivateStore
from client.store import disk
from client.store.keys import Key
from client.store.manifest import Manifest
from client.store.shelf import Shelf, transfer
from client.store.vault import HEAD, NEXT, Head, head
from configs.errors import InputError


def rekey(folder: Path, old: Key | None, new: Key | None) -> int:
    """Keep everything in a store under ``new`` instead of ``old`` (None: in the clear); returns how many users.

    Every user gets a new key of their own, so whoever has an old copy and only the new key of the node opens nothing of it.
    Raises `InputError`: nothing is changed where a file is damaged or ``old`` is another key.
    """
    with disk.told(folder), PrivateStore(folder).held(alone=True):
        disk.sweep(folder)
        said = head(folder)
        if said is None:
            return 0
        if said.key == (new.id if new else ""):
            raise InputError(f"{folder} is {f'sealed with key {said.key}' if said.key else 'in the clear'} already; name another key")
        source, after = Shelf(folder, said.vault(folder, old)), head(folder, NEXT)
        if after is None:
            for sentence in (x for theirs in source.manifests() for x in source.damage(theirs)):
                raise InputError(sentence)
            after = Head.new(new)
            disk.create(folder / NEXT, after.bytes())
        target, users = Shelf(folder, after.vault(folder, new)), 0
        for place in source.places():
            shelf, theirs = _whose(place, target, source)
            if shelf is source and theirs is not None:
                transfer(theirs.user, source, target)
            if shelf is source or theirs is None:
                disk.remove(place)
            users += theirs is not None
        for lock in (folder / LOCKS).iterdir():
            if not lock.name.startswith("store"):  # their names are made of users'
                lock.unlink()
        (folder / NEXT).replace(folder / HEAD)
        disk.settle(folder)
    return users


def _whose(place: Path, target: Shelf, source: Shelf) -> tuple[Shelf, Manifest | None]:
    """The shelf that a folder belongs to, and its manifest."""
    try:
        return target, target.read_manifest(place)
    except InputError:
        return source, source.read_manifest(place)

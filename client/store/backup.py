"""One file with all that a node keeps of its users and all that they have spent; and the way back, which never counts too little.

States are read before ledgers, and a round is booked before it trains: so a copy's ledger holds all that its states have cost,
also when a node works meanwhile.
"""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from client.private import PrivateStore
from client.store import disk, manifest, places, receipts
from client.store.keys import Key
from client.store.manifest import Manifest, now
from client.store.places import STAGE
from client.store.shelf import TRIES, Shelf, transfer
from client.store.vault import HEAD, KEY
from configs.errors import InputError
from strategies.privacy.ledger import Ledger

INDEX = "backup.json"
FORMAT = 1


class Restored(NamedTuple):
    """What a restore did."""

    created: str  # when the copy was made
    users: int  # who have other versions now
    same: int  # who had these already
    forgotten: tuple[str, ...]  # left out, as they were forgotten since
    booked: int  # bookings that the ledgers lacked
    ahead: int  # bookings that they hold beyond the copy, which stay


def backup(at: Path, archive: Path, key: Key | None) -> int:
    """Write a copy of all stores and ledgers under ``at``; returns its users. Raises `InputError`, and then there is no archive."""
    if archive.exists():
        raise InputError(f"{archive} exists already; choose another name")
    if not archive.parent.is_dir():
        raise InputError(f"{archive} cannot be written: its folder does not exist")
    with disk.told(archive), tempfile.TemporaryDirectory(prefix=".backup-", dir=archive.parent) as scratch:
        index: dict[str, str] = {}
        path, users = Path(scratch) / "archive.tar", 0
        path.touch(0o600)
        with tarfile.open(path, "w") as tar, places.opened(at, key) as shelves:
            for name, shelf in shelves.items():
                _add(tar, index, f"{name}/{HEAD}", (shelf.folder / HEAD).read_bytes())
                for place in shelf.places():
                    files = _whole(shelf, place)
                    users += bool(files)
                    for file, data in files.items():
                        _add(tar, index, f"{name}/{place.name}/{file}", data)
            for name, ledger in places.ledgers(at).items():
                with Ledger(ledger) as known:
                    known.copy(copy := Path(scratch) / "ledger")
                _add(tar, index, name, copy.read_bytes())
                copy.unlink()
            _add(tar, {}, INDEX, json.dumps({"format": FORMAT, "created": now(), "files": index}).encode())
        disk.publish(path, archive)
    return users


def restore(archive: Path, at: Path, key: Key | None, old: Key | None = None) -> Restored:
    """Bring back what a copy holds. ``old``: the key that the copy was made under, if it is another one.

    Raises `InputError`, before anything is changed, where a user has a newer state here than there, where a ledger here and its copy
    have both gone on, or a process uses a store. Ledgers only grow; users who were forgotten since stay forgotten.
    """
    disk.make(at)
    disk.clear(at, STAGE)
    with disk.told(at), tempfile.TemporaryDirectory(prefix=STAGE, dir=at) as scratch, ExitStack() as stack:
        stage = Path(scratch)
        created = _unpack(archive, stage)
        pairs = []
        for name, folder in places.stores(stage).items():
            store = PrivateStore(at / name, key)
            stack.enter_context(store.held(alone=True))
            store.shelf()  # refuses another key
            pairs.append((PrivateStore(folder, old or key).begin(), store))
        gone = receipts.since(at, created)
        moves = [(said, *pair) for pair in pairs for said in pair[0].manifests() if said.user not in gone]
        other = [move for move in moves if _differs(*move)]
        for said, source, _ in other:
            for sentence in source.damage(said):
                raise InputError(f"{archive}: {sentence}")
        booked, ahead = _take_over(at, stage, list(places.ledgers(stage)))
        for said, source, store in other:
            shelf = store.begin()
            if shelf.broken(shelf.place(said.user)):
                disk.remove(shelf.place(said.user))
            transfer(said.user, source, shelf)
        left_out = {said.user for source, _ in pairs for said in source.manifests() if said.user in gone}
        return Restored(created, len(other), len(moves) - len(other), tuple(sorted(left_out)), booked, ahead)


def _differs(theirs: Manifest, _source: Shelf, store: PrivateStore) -> bool:
    """Whether a user has less here than in the copy, or it is damaged. Raises `InputError` where they may have more."""
    shelf = store.shelf()
    if shelf is None:
        return True
    place = shelf.place(theirs.user)
    try:
        mine = shelf.manifest(theirs.user)
        newer = bool(mine) and _age(mine) > _age(theirs)
    except InputError:
        mine, newer = None, shelf.last(place) > theirs.number
    if newer:
        raise InputError(
            f"{place} holds what is newer than the copy's of user '{theirs.user}'; nothing was restored: restore into another home, or "
            "move that folder away"
        )
    return mine is None or _age(mine) < _age(theirs) or any(shelf.damage(mine))


def _age(said: Manifest) -> tuple[int, str]:
    last = max(said.versions, key=lambda v: v.round, default=None)
    return (last.round, last.created) if last else (0, "")


def _take_over(at: Path, stage: Path, names: list[str]) -> tuple[int, int]:
    with ExitStack() as stack:
        pairs = []
        for name in names:
            disk.make((at / name).parent)
            pairs.append((stack.enter_context(Ledger(at / name)), stack.enter_context(Ledger(stage / name))))
        for here, there in pairs:  # all of them, before any of them changes
            if here.beyond(there) and there.beyond(here):
                here.take_over(there)
        return sum(here.take_over(there) for here, there in pairs), sum(here.beyond(there) for here, there in pairs)


def _whole(shelf: Shelf, place: Path) -> dict[str, bytes]:
    """The files of a user that belong together, while somebody may be writing new ones; none of who has nothing."""
    for _ in range(TRIES):
        try:
            said = shelf.read_manifest(place)
            if said is None:
                return {}
            names = [shelf.name(said), *([KEY] if (place / KEY).exists() else []), *sorted(said.names())]
            found = {name: (place / name).read_bytes() for name in names}
        except FileNotFoundError:
            continue
        for file in (f for v in said.versions for f in v.files.values()):
            if manifest.file(file.name, found[file.name]) != file:
                raise InputError(f"{place / file.name} is damaged; see 'store verify': no copy was made")
        return found
    raise InputError(f"{place} is written to all the time; stop what does so")


def _add(tar: tarfile.TarFile, index: dict[str, str], name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o600
    tar.addfile(member, io.BytesIO(data))
    index[name] = hashlib.sha256(data).hexdigest()


def _unpack(archive: Path, stage: Path) -> str:
    """Lay a copy out, every file of which is what was written; returns when it was made."""
    found: dict[str, str] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for name, data in _members(tar):
                disk.make((stage / name).parent)
                disk.write(stage / name, data, flush=False)
                found[name] = hashlib.sha256(data).hexdigest()
        said: Any = json.loads((stage / INDEX).read_bytes())
        del found[INDEX]
        if said["format"] > FORMAT or found != said["files"]:
            raise ValueError("a file in it is not what its index says")
    except (tarfile.TarError, FileNotFoundError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{archive} is no copy of a store, or is damaged ({error}); nothing was restored") from None
    return str(said["created"])


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        path, file = PurePosixPath(member.name), tar.extractfile(member) if member.isfile() else None
        if file is None or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"'{member.name}' has no place in it")
        yield member.name, file.read()

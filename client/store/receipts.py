"""How a user is forgotten: every file of theirs goes, their bytes are searched for, and a receipt says so, and what it does not cover.

The ledgers keep the user's lines: what has left stays spent.
"""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from client.private import LOCKS
from client.store import disk, manifest, places
from client.store.keys import Key
from client.store.manifest import now
from client.store.vault import MANIFEST, Plain, folder_name
from configs.errors import InputError, nearest
from strategies.privacy.ledger import JOINT, LEDGER, Ledger

FOLDER = "receipts"
SLICE = 48  # bytes of a removed file that are searched for, at so many places
SLICES = 5
NOT_COVERED = (
    "copies made by 'store backup' or by anybody else: destroy them; a sealed copy is closed for this user by 'store rekey' and by "
    "destroying the key before",
    "what the file system, a snapshot or the disk itself still holds of removed files",
    "the user's own texts where the node's data lie, and activations of them in the cache ($HOMING_CACHE): remove them there",
    "what has been learned from their releases, which is in the shared adapter: the ledgers say within which bound",
    "reports and tables of runs, and this receipt, which have the user's name",
)


def forget(at: Path, user: str, key: Key | None) -> Path:
    """Remove all that the stores under ``at`` hold of a user, and write a receipt; returns where it lies.

    Raises `InputError` for a user whom neither a store nor a ledger knows.
    """
    with places.opened(at, key, alone=True) as shelves:
        homes = {name: shelf.place(user) for name, shelf in shelves.items()}
        booked = {name: rounds for name, path in places.ledgers(at).items() if (rounds := _booked(path, user))}
        if not booked and not any(place.exists() for place in homes.values()):
            known = {said.user for shelf in shelves.values() for said in shelf.manifests()}
            raise InputError(f"no store and no ledger under {at} knows a user '{user}'{nearest(user, known)}")
        removed, needles = [], []
        for place in homes.values():
            for path in sorted(place.iterdir()) if place.is_dir() else ():
                data = path.read_bytes()
                removed.append({"file": path.relative_to(at).as_posix(), **manifest.file("", data)._asdict()})
                needles += _slices(path, data)
        needles = _own(needles, at, set(homes.values()))
        for name, place in homes.items():
            _remove(place, {folder_name(user), place.name})
            disk.sweep(at / name)
        disk.clear(at, places.STAGE)
        disk.clear(at, places.ANSWERS)
        left = [path.relative_to(at).as_posix() for path in _search(at, user, {p.name for p in homes.values()}, needles)]
        said = {
            "user": user, "forgotten": now(), "removed": [{k: v for k, v in x.items() if k != "name"} for x in removed],
            "searched_for": len(needles), "found_after": left, "ledgers_keep_rounds": booked, "not_covered": NOT_COVERED,
        }  # fmt: skip
        receipt = _write(at / FOLDER, said)
    if left:
        raise InputError(f"{left[0]} still holds the name or bytes of user '{user}'; {receipt} says what was removed")
    return receipt


def since(at: Path, time: str) -> set[str]:
    """Who was forgotten under ``at`` at or after a time."""
    said: list[Any] = [json.loads(path.read_text()) for path in (at / FOLDER).glob("*.json")]
    return {x["user"] for x in said if x["forgotten"] >= time}


def _remove(place: Path, locks: set[str]) -> None:
    if place.exists():
        disk.remove(place)
    for name in locks:
        (place.parent / LOCKS / name).unlink(missing_ok=True)


def _booked(path: Path, user: str) -> int:
    with Ledger(path) as ledger:
        return ledger.participations().get(user, 0)


def _slices(path: Path, data: bytes) -> Iterator[bytes]:
    """Pieces of a file of tensors behind its header: short runs of bytes, many of which differ."""
    if path.name.startswith(MANIFEST):
        return
    head = 8 + int.from_bytes(data[:8], "little") if path.suffix == Plain.suffix else 0
    step = max(1, (len(data) - head) // (SLICES + 1))
    for start in range(head + step, len(data) - SLICE, step):
        if len(set(piece := data[start : start + SLICE])) > SLICE // 2:
            yield piece


def _own(needles: list[bytes], at: Path, homes: set[Path]) -> list[bytes]:
    """Those that no other user's files hold, too: an adapter that has not moved yet is everybody's."""
    for folder in places.stores(at).values():
        for path in (p for p in folder.glob("[!.]*/[0-9]*") if p.parent not in homes):
            data = path.read_bytes()
            needles = [needle for needle in needles if needle not in data]
    return needles


def _search(at: Path, user: str, folders: set[str], needles: list[bytes]) -> Iterator[Path]:
    """Files of the stores whose path, words or bytes are a user's; ledgers are not asked."""
    quoted = json.dumps(user).encode()
    for folder in places.stores(at).values():
        for path in (p for p in folder.rglob("*") if p.is_file() and p.name not in (LEDGER, JOINT)):
            data = path.read_bytes()
            named = any(name in part for name in folders for part in path.relative_to(at).parts)
            if named or (path.suffix == ".json" and quoted in data) or any(needle in data for needle in needles):
                yield path


def _write(folder: Path, said: dict[str, Any]) -> Path:
    disk.make(folder)
    for nth in count(1):
        path = folder / f"{nth:06d}.json"
        if disk.create(path, json.dumps(said, indent=1).encode()):
            return path
    raise AssertionError

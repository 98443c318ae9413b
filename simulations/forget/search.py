"""Is anything of them left? Every file of a run is searched for the bytes of their private tensors, and for their name.

Bytes: of each tensor that the old run's store has kept of them, in every version and of every kind, each piece of 64 bytes in a row
from its start, and its last 64. Whoever copies 127 bytes of a tensor copies one of these. Left out are pieces that other users' files
hold as well (an adapter that has not moved is everybody's) and pieces of few different bytes, such as zeros; a tensor below 64 bytes
has none. Ledgers are not searched: they keep what was spent.
"""

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from client.private import PrivateStore, folder_name
from client.store import origin
from strategies.privacy.ledger import JOINT, LEDGER

WINDOW = 64  # bytes
FEW = 8  # a piece of so many different bytes, or fewer, is nobody's
LEDGERS = (LEDGER, JOINT)
WORDS = (".json", ".jsonl", ".csv", ".html", ".yaml", ".md")


class Found(NamedTuple):
    """What a search has come to."""

    searched: int  # pieces that were looked for
    bytes: int  # in files, of these pieces
    names: tuple[str, ...]  # files that say a user's name, in their path or in words


def windows(store: PrivateStore, users: Collection[str]) -> set[bytes]:
    """Pieces of all that a store keeps of users, and of nobody else."""
    shelf = store.shelf()
    said = list(shelf.manifests()) if shelf else []
    kept = (
        [(x.user, shelf.read(x.user, version, kind)) for x in said for version in x.versions for kind in version.files] if shelf else []
    )
    theirs = {piece for user, data in kept if user in users for value in origin.decoded(data).values() for piece in pieces(value)}
    for user, data in kept:
        if user not in users:
            theirs.difference_update(_in(data, theirs))
    return theirs


def pieces(value: Tensor) -> Iterator[bytes]:
    """A tensor's bytes, `WINDOW` at a time."""
    data = value.contiguous().cpu().numpy().tobytes()
    starts = (*range(0, len(data) - WINDOW, WINDOW), len(data) - WINDOW) if len(data) >= WINDOW else ()
    yield from (piece for at in starts if len(set(piece := data[at : at + WINDOW])) > FEW)


def search(folder: Path, needles: set[bytes], users: Iterable[str]) -> Found:
    """Look through all files of a folder but ledgers. ``users``: whose names must not be there."""
    hits, named, names = 0, [], list(users)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in LEDGERS):
        data = path.read_bytes()
        hits += WINDOW * len(list(_in(data, needles)))
        if any(_named(path.relative_to(folder), data, user) for user in names):
            named.append(path.relative_to(folder).as_posix())
    return Found(len(needles), hits, tuple(named))


def _in(data: bytes, needles: set[bytes]) -> Iterator[bytes]:
    """Every place of a file is looked at: what is copied need not lie where it lay."""
    return (piece for at in range(len(data) - WINDOW + 1 if needles else 0) if (piece := data[at : at + WINDOW]) in needles)


def _named(path: Path, data: bytes, user: str) -> bool:
    """As a user's folder, a string of JSON or YAML, a cell of a table, or an element of a page."""
    if folder_name(user) in path.parts or path.stem == user:
        return True
    if path.suffix not in WORDS:
        return False
    text = data.decode(errors="replace")
    forms = (json.dumps(user), f"'{user}'", f">{user}<", f"- {user}\n")
    return any(form in text for form in forms) or (path.suffix == ".csv" and user in _cells(text))


def _cells(text: str) -> set[str]:
    """What a table may name users in: its column of users, or where it has none every cell, as a count may look like a name."""
    rows = list(csv.reader(io.StringIO(text)))
    at = rows[0].index("user") if rows and "user" in rows[0] else None
    return {cell for row in rows for number, cell in enumerate(row) if at is None or number == at}

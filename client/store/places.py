"""What lies under a node's home, or in a run's folder: stores and ledgers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from client.private import PrivateStore
from client.store.keys import Key
from client.store.shelf import Shelf
from client.store.vault import HEAD, NEXT
from configs.errors import InputError
from strategies.privacy.ledger import JOINT, LEDGER

STAGE = ".restore-"  # how folders begin in which a restore lays out a copy
EDITS = "edits"  # corrections of what users' models say: `client.editing.records`
USE = "use"  # of each run: what users' models need beside what is private, and edits: `client.given`
ANSWERS = "answers"  # what was let out last: `client.repeats`


def stores(at: Path, some: bool = True) -> dict[str, Path]:
    """Stores by their path from ``at``. Raises `InputError` where there are none, if there must be ``some``."""
    folders = [*at.glob("nodes/*"), at / "private", at / EDITS, *at.glob(f"{USE}/*/{EDITS}")]
    found = {
        folder.relative_to(at).as_posix(): folder for folder in sorted(folders) if any((folder / n).exists() for n in (HEAD, NEXT))
    }
    if some and not found:
        raise InputError(f"{at} holds no private store; name a node's home ($HOMING_HOME) or a run's folder with --home")
    return found


def ledgers(at: Path) -> dict[str, Path]:
    """Ledgers by their path from ``at``."""
    found = (folder / name for folder in (at, *at.glob("nodes/*")) for name in (LEDGER, JOINT))
    return {path.relative_to(at).as_posix(): path for path in found if path.exists()}


@contextmanager
def opened(at: Path, key: Key | None, alone: bool = False) -> Iterator[dict[str, Shelf]]:
    """All stores under ``at``, kept from other processes; with ``alone`` from nodes, too."""
    with ExitStack() as stack:
        found = {}
        for name, folder in stores(at).items():
            store = PrivateStore(folder, key)
            stack.enter_context(store.held(alone=alone))
            found[name] = store.begin()
        yield found

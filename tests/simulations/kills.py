"""Processes that are killed before a chosen write, and what a life's folder holds."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simulations.life import record
from strategies.privacy.ledger import LEDGER, Ledger

Writes = Sequence[tuple[Any, str]]  # whose attribute writes


def killed(work: Callable[[], object], places: Writes, writes: int) -> int:
    """Work in a process of its own that kills itself before its next write after so many; returns the signal that ended it, or 0."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left = writes

    def mortal(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*args)

        return wrapped

    for owner, name in places:
        setattr(owner, name, mortal(getattr(owner, name)))
    work()
    os._exit(0)


def tensors(folder: Path) -> dict[str, bytes]:
    """What a life keeps of users and of the server."""
    return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in (*folder.glob("private/*/0*"), *folder.glob("period-*/shared-*"))}


def timeless(folder: Path) -> dict[str, Any]:
    """What a life says of itself, but for how long it took."""
    return {name: value for name, value in record.read(folder).items() if name != "seconds"}


def booked(folder: Path) -> set[tuple[Any, ...]]:
    """(user, run, round, what, ...) of all that a life's ledger holds."""
    if not (folder / LEDGER).exists():
        return set()
    with Ledger(folder / LEDGER) as ledger:
        return ledger._rows()

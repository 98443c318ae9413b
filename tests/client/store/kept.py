"""A node's home with one run's store and a ledger, in the clear and sealed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from client.private import PrivateStore
from client.store.keys import Key
from client.store.manifest import Made, Origin
from strategies.privacy.events import Event
from strategies.privacy.ledger import LEDGER, Ledger, Spend
from strategies.tree import State

HERE = Origin("ba" * 32, "70" * 32, "ad" * 32)
MADE = Made(HERE, 1, "5a" * 32, ("ledger.sqlite#x",))
RUN = "x-1234abcd"
NAMES = ("annabel", "bob", "Zoë / 9")


def state(seed: int, size: int = 200) -> State:
    """Some tensors."""
    draw = torch.Generator().manual_seed(seed)
    return {"private/a": torch.randn(size, 3, generator=draw), "private/b": torch.randn(size, generator=draw).bfloat16()}


def equal(one: State | None, other: State | None) -> bool:
    """Whether two states are the same to the last bit; neither is None."""
    assert one is not None and other is not None
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one)


def spend(home: Path, users: Iterable[str], *rounds: int) -> None:
    """Book these rounds of these users."""
    home.mkdir(parents=True, exist_ok=True)
    with Ledger(home / LEDGER) as ledger:
        ledger.spend([Spend(user, "x", n, "private", Event(1.0, 3, 0.5), keyed=False) for user in users for n in rounds])


def fill(home: Path, key: Key | None, rounds: int = 3, booked: bool = True) -> PrivateStore:
    """Three users' rounds, booked and kept."""
    store = PrivateStore(home / "nodes" / RUN, key)
    if booked:
        spend(home, NAMES, *range(1, rounds + 1))
    for round_ in range(1, rounds + 1):
        for at, user in enumerate(NAMES):
            store.save(user, round_, state(10 * round_ + at), MADE)
    return store


def files(folder: Path) -> dict[str, bytes]:
    """Every file under a folder but locks."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and ".locks" not in p.parts}


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def wants(told: Any) -> None:
    """Ask for what a pipe names, users or a whole store, and tell what comes of it: "" if it is given. None ends it."""
    while asked := told.recv():
        folder, key, users, alone = asked
        try:
            with PrivateStore(folder, key).held(users, alone):
                told.send("")
        except Exception as error:
            told.send(f"{type(error).__name__}: {error}")

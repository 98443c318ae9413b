"""A run of data in which the forgotten never were, made apart from all that leaves them out: is it what the new run is?"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from client import data
from client.base import Base
from client.data.types import Dataset, Splits
from client.private import PrivateStore
from server import checkpoint
from simulations.forget.plan import Plan
from simulations.training import World, train
from strategies.tree import State


def differs(asked: Plan, base: Base, say: Callable[[str], None]) -> float:
    """The largest difference of any number of the shared adapter, or of any user's own one, between two runs."""
    there = data.load(asked.old.data, base.tokenizer, asked.old.seed)
    never = replace(there, users={u: _left(asked, u, x) for u, x in there.users.items() if u not in asked.gone})
    scenario = replace(asked.old, root_users=asked.new.root_users)
    with TemporaryDirectory(prefix="homing-never-") as folder:
        train(scenario, World(base, never), Path(folder), (), lambda row: say(f"round {row['round']} of a run that never had them"))
        return apart(asked.stage, Path(folder), never)


def apart(one: Path, other: Path, users: Dataset) -> float:
    """The largest difference between what two runs have come to; infinite where one has tensors that the other lacks."""
    ends = checkpoint.latest(one), checkpoint.latest(other)
    assert ends[0] and ends[1]
    stores = [PrivateStore(folder / "private") for folder in (one, other)]
    pairs = [(ends[0].shared, ends[1].shared)]
    for user in users.users:
        kept = [store.parts(user, 2**62) for store in stores]
        if kept[0].keys() != kept[1].keys():
            return float("inf")
        pairs += [(kept[0][kind], kept[1][kind]) for kind in kept[0]]
    return max(_largest(*pair) for pair in pairs)


def _largest(one: State, other: State) -> float:
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return float("inf")
    return max((float((one[name] - other[name]).abs().max()) for name in one), default=0.0)


def _left(asked: Plan, user: str, splits: Splits) -> Splits:
    if user not in asked.users:
        return splits
    return replace(splits, train=tuple(e for e in splits.train if e.unit not in asked.units))

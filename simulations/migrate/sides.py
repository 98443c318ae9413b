"""The old base and the new one side by side, each with its data, the run's adapters and a store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from client import base as bases
from client import data
from client.data.types import Dataset, Encoded
from client.migration.ground import ground
from client.migration.move import Mover
from client.migration.teach import written
from client.node import Node
from client.private import PrivateStore
from client.store import keys, origin
from configs.errors import InputError
from configs.scenario import Scenario
from simulations.migrate.plan import Plan
from simulations.training import World
from strategies.tree import State, generator

MADE_UP, WRITTEN, LENGTH = 64, 32, 32  # texts of random tokens, and of a base's own, where data have no public ones; tokens of each


@dataclass(frozen=True)
class Sides:
    """Two nodes with the same users."""

    old: Node
    new: Node


@contextmanager
def opened(asked: Plan, empty: bool = False) -> Iterator[Sides]:
    """Load both. ``empty``: without anybody's data. Raises `InputError` where the migrator needs one tokenizer and there are two."""
    key = keys.read(asked.key)
    there = world(asked.old, empty=empty)
    here = world(asked.new, there)
    if asked.migrator.same_tokenizer and _words(there.base) != _words(here.base):
        raise InputError(f"{asked.how} needs one tokenizer, and '{asked.new.model.name}' has another; use --with retrain")
    nodes: list[Node] = []
    try:
        for scenario, place, folder in ((asked.old, there, asked.run), (asked.new, here, asked.stage)):
            nodes.append(Node(scenario, place.base, place.dataset, PrivateStore(folder / "private", key)))
        yield Sides(*nodes)
    finally:
        for node in nodes:
            node.close()


def world(scenario: Scenario, like: World | None = None, empty: bool = False) -> World:
    """A base and its data, those of ``like`` where both have one tokenizer. ``empty``: nobody's, unless factors need texts."""
    base = bases.load(scenario.model, scenario.engine.device)
    if like and _words(base) == _words(like.base):
        return World(base, like.dataset)
    if empty and scenario.shared.factors != "fisher" and scenario.private.factors != "fisher":
        return World(base, Dataset({}, {}, "", (), (), ""))
    return World(base, data.load(scenario.data, base.tokenizer, scenario.seed))


def mover(asked: Plan, sides: Sides) -> Mover:
    """What takes a state from the old base to the new one, for a migrator that trains nothing."""
    ways = asked.migrator.ways
    assert ways is not None
    both = [ground(n.base, n.split.layouts, texts(n) if asked.migrator.texts else ()) for n in (sides.old, sides.new)]
    return Mover(sides.old.split, sides.new.split, ways(*both))


def distilled(sides: Sides, shared: State) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...]]:
    """The texts to learn from, as each base's tokens: public ones, else what the old base writes with the shared adapter."""
    public = sides.old.dataset.public, sides.new.dataset.public
    if all(public) or _words(sides.old.base) != _words(sides.new.base):
        return public
    made_up = written(sides.old, shared, WRITTEN, LENGTH)
    return made_up, made_up


def texts(node: Node) -> tuple[Encoded, ...]:
    """Texts that belong to nobody: the data's public ones, else random tokens, the same for every base of one vocabulary."""
    if node.dataset.public:
        return node.dataset.public
    vocabulary = node.base.model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (MADE_UP, LENGTH), generator=generator("migrate", "texts"))
    return tuple(Encoded(row, LENGTH, -1, i) for i, row in enumerate(ids))


def _words(base: bases.Base) -> str:
    return origin.of_tokenizer(base.tokenizer)

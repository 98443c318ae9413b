"""One training on one world: the rounds in this process, and the test split at their end."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client import base as bases
from client import data, ledgers
from client.data.types import Dataset
from client.node import Node
from client.private import PrivateStore
from configs.scenario import Scenario, scenario_hash
from server import aggregation, checkpoint, rounds
from server.checkpoint import Checkpoint
from server.joint import Joint, kept
from server.sampling import invited
from server.span import before
from simulations.fused import FusedRuntime
from strategies.base import Runtime, Task


@dataclass(frozen=True)
class World:
    """What the main run and its controls have in common."""

    base: bases.Base
    dataset: Dataset


def open_world(scenario: Scenario) -> World:
    """The base and the data that a scenario names."""
    base = bases.load(scenario.model, scenario.engine.device)
    if scenario.engine.threads:
        torch.set_num_threads(scenario.engine.threads)
    return World(base, data.load(scenario.data, base.tokenizer, scenario.seed, scenario.life))


def train(scenario: Scenario, world: World, folder: Path, wanted: Sequence[str],
          observe: rounds.Observer) -> tuple[Checkpoint, list[dict[str, Any]]]:  # fmt: skip
    """Run the rounds and score the test split: the last checkpoint and a row per user."""
    with at_work(scenario, world, folder, folder) as (node, joint):
        state = go(node, joint, folder, observe)
        return state, node.evaluate(Task(state.round + 1, state.shared), "test", wanted)


@contextmanager
def at_work(scenario: Scenario, world: World, folder: Path, home: Path) -> Iterator[tuple[Node, Joint | None]]:
    """Open a run's folder, and in ``home`` the private store and the ledgers that it goes on with. Both are this process's own."""
    invited(scenario, list(world.dataset.users))
    store = PrivateStore(home / "private", flush=False)
    node = Node(scenario, world.base, world.dataset, store)  # before the folder is there: a name that the base lacks leaves nothing
    with closing(node), checkpoint.held(folder), store.held(), spending(node, folder, home) as joint:
        node.warm()
        checkpoint.begin(folder, scenario)
        last = checkpoint.latest(folder)
        store.forget_after(last.round if last else before(scenario))
        yield node, joint


def go(node: Node, joint: Joint | None, folder: Path, observe: rounds.Observer, since: Checkpoint | None = None) -> Checkpoint:
    """Run or resume the rounds. ``since`` as in `rounds.run`."""
    aggregator = aggregation.build(node.scenario)
    return rounds.run(
        node.scenario, runtime(node, joint), aggregator, node.split.shared_start(), folder, observe, joint, node.origin, since
    )


@contextmanager
def spending(node: Node, folder: Path, home: Path | None = None) -> Iterator[Joint | None]:
    """Open a run's ledgers and plan, which lie in its folder; a control's in its own, as what it spends is nobody's.

    ``home``: where the ledgers of a life are.
    """
    name, home = scenario_hash(node.scenario), home or folder
    with ledgers.opened(node, home, name, keyed=True), kept(node.scenario, node.users(), folder, home, name, keyed=True) as joint:
        yield joint


def runtime(node: Node, joint: Joint | None) -> Runtime:
    """All users side by side; under masks where the scenario says so."""
    if not node.scenario.privacy.secure:
        return FusedRuntime(node)
    from server.secure import SecureRuntime  # imports Flower, for which no other run waits

    return SecureRuntime(FusedRuntime(node), node.scenario, joint.plan if joint else None)

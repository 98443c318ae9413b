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
    return World(base, data.load(scenario.data, base.tokenizer, scenario.seed))


def train(scenario: Scenario, world: World, folder: Path, wanted: Sequence[str],
          observe: rounds.Observer) -> tuple[Checkpoint, list[dict[str, Any]]]:  # fmt: skip
    """Run the rounds and score the test split: the last checkpoint and a row per user."""
    invited(scenario, list(world.dataset.users))
    store = PrivateStore(folder / "private", flush=False)
    node = Node(scenario, world.base, world.dataset, store)  # before the folder is there: a name that the base lacks leaves nothing
    with closing(node), checkpoint.held(folder), store.held(), spending(node, folder) as joint:
        node.warm()
        checkpoint.begin(folder, scenario)
        last = checkpoint.latest(folder)
        store.forget_after(last.round if last else 0)
        aggregator = aggregation.build(scenario)
        state = rounds.run(scenario, runtime(node, joint), aggregator, node.split.shared_start(), folder, observe, joint, node.origin)
        return state, node.evaluate(Task(state.round + 1, state.shared), "test", wanted)


@contextmanager
def spending(node: Node, folder: Path) -> Iterator[Joint | None]:
    """Open a run's ledgers and plan, which lie in its folder; a control's in its own, as what it spends is nobody's."""
    name = scenario_hash(node.scenario)
    with ledgers.opened(node, folder, name, keyed=True), kept(node.scenario, node.users(), folder, folder, name, keyed=True) as joint:
        yield joint


def runtime(node: Node, joint: Joint | None) -> Runtime:
    """All users side by side; under masks where the scenario says so."""
    if not node.scenario.privacy.secure:
        return FusedRuntime(node)
    from server.secure import SecureRuntime  # imports Flower, for which no other run waits

    return SecureRuntime(FusedRuntime(node), node.scenario, joint.plan if joint else None)

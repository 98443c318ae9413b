"""One training on one world: the rounds in this process, and the test split at their end."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client import base as bases
from client import data
from client.data.types import Dataset
from client.node import Node
from client.own_noise import OwnNoise
from client.private import PrivateStore
from client.purse import Purse
from configs.scenario import Scenario, scenario_hash
from server import aggregation, checkpoint, rounds
from server.checkpoint import Checkpoint
from server.joint import Joint, open_joint
from server.report.promise import JOINT
from simulations.fused import FusedRuntime
from strategies.base import Runtime, Task
from strategies.privacy import joint as user_level
from strategies.privacy.ledger import LEDGER, Ledger


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
    store = PrivateStore(folder / "private")
    node = Node(scenario, world.base, world.dataset, store)  # before the folder is there: a name that the base lacks leaves nothing
    with closing(node), checkpoint.held(folder), _purse(scenario, folder) as node.purse, _joint(scenario, node, folder) as joint:
        node.warm()
        checkpoint.begin(folder, scenario)
        last = checkpoint.latest(folder)
        store.forget_after(last.round if last else 0)
        aggregator = aggregation.build(scenario)
        state = rounds.run(scenario, _runtime(node, joint), aggregator, node.split.shared_start(), folder, observe, joint)
        return state, node.evaluate(Task(state.round + 1, state.shared), "test", wanted)


def _runtime(node: Node, joint: Joint | None) -> Runtime:
    """All users side by side; under masks where the scenario says so."""
    if not node.scenario.privacy.secure:
        return FusedRuntime(node)
    from server.secure import SecureRuntime  # imports Flower, for which no other run waits

    return SecureRuntime(FusedRuntime(node), node.scenario, joint.plan if joint else None)


@contextmanager
def _purse(scenario: Scenario, folder: Path) -> Iterator[Purse | None]:
    """A run's ledger lies in its folder; a control's in its own, as what it spends is nobody's."""
    if not scenario.privacy.of_examples:
        yield None
        return
    with Ledger(folder / LEDGER) as ledger:
        yield Purse(scenario, ledger, scenario_hash(scenario))


@contextmanager
def _joint(scenario: Scenario, node: Node, folder: Path) -> Iterator[Joint | None]:
    """The server's ledger of guarantee U; where users noise their own releases, the node's."""
    if not scenario.privacy.of_users:
        yield None
        return
    with Ledger(folder / JOINT) as ledger:
        if user_level.needed(scenario):
            yield open_joint(scenario, node.users(), ledger, scenario_hash(scenario))
        else:
            node.own = OwnNoise(scenario, ledger, scenario_hash(scenario))
            yield None

"""One training on one world: the rounds in this process, and the test split at their end."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import base as bases
from client.data.types import Dataset
from client.node import Node
from client.private import PrivateStore
from configs.scenario import Scenario
from server import aggregation, checkpoint, rounds
from server.checkpoint import Checkpoint
from simulations.fused import FusedRuntime
from strategies.base import Task


@dataclass(frozen=True)
class World:
    """What the main run and its controls have in common."""

    base: bases.Base
    dataset: Dataset


def train(scenario: Scenario, world: World, folder: Path, wanted: Sequence[str],
          observe: rounds.Observer) -> tuple[Checkpoint, list[dict[str, Any]]]:  # fmt: skip
    """Run the rounds and score the test split: the last checkpoint and a row per user."""
    store = PrivateStore(folder / "private")
    node = Node(scenario, world.base, world.dataset, store)
    with closing(node), checkpoint.held(folder):
        node.warm()
        checkpoint.begin(folder, scenario)
        last = checkpoint.latest(folder)
        store.forget_after(last.round if last else 0)
        aggregator = aggregation.build(scenario)
        state = rounds.run(scenario, FusedRuntime(node), aggregator, node.split.shared_start(), folder, observe)
        return state, node.evaluate(Task(state.round + 1, state.shared), "test", wanted)

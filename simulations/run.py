"""One scenario from start to report, in this process."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import base as bases
from client import data
from client.data.types import Dataset
from client.node import Node
from client.private import PrivateStore
from configs.scenario import Scenario
from server import aggregation, checkpoint, rounds
from server.checkpoint import Checkpoint
from server.finish import finish
from server.finish import users_csv as users_csv
from simulations import retrained
from simulations.fused import FusedRuntime
from strategies.base import Task


@dataclass(frozen=True)
class World:
    """What the main run and its controls have in common."""

    base: bases.Base
    dataset: Dataset


def run(scenario: Scenario, folder: Path, observe: rounds.Observer = lambda _row: None) -> Path:
    """Run or resume a scenario with its controls and write the report. Returns the page's path.

    The folder holds scenario.yaml, rounds.jsonl, users.csv, timing.json, summary.json and report.html.
    """
    clock = {"load": time.perf_counter()}
    base = bases.load(scenario.model, scenario.engine.device)
    clock["data"] = time.perf_counter()
    world = World(base, data.load(scenario.data, base.tokenizer, scenario.seed))
    clock["rounds"] = time.perf_counter()
    state, table = train(scenario, world, folder, scenario.controls, observe)
    clock["controls"] = time.perf_counter()
    for name, extra in retrained.rows(scenario, world, folder, observe):
        merge(table, name, extra)
    clock["end"] = time.perf_counter()
    return finish(folder, table, clock, state)


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


def merge(table: list[dict[str, Any]], control: str, rows: list[dict[str, Any]]) -> None:
    """Put one control's columns into the users' table, in place of what may be there."""
    found = {row["user"]: row for row in rows}
    for row in table:
        extra = found.get(row["user"], {})
        fresh = {k: v for k, v in extra.items() if k.startswith(f"{control}.")}
        if fresh:
            row |= fresh

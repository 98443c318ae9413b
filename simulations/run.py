"""One scenario from start to report, in this process."""

import csv
import io
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import base as bases
from client import data
from client.data.types import Dataset
from client.node import Node
from client.private import PrivateStore
from configs.scenario import Scenario
from server import checkpoint, rounds
from server.checkpoint import Checkpoint
from server.report import write
from simulations import retrained
from simulations.fused import FusedRuntime
from strategies.base import Task
from strategies.files import write_text


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
    write_text(folder / "users.csv", users_csv(table))
    write_text(folder / "timing.json", json.dumps(timing(clock, state)))
    return write.write(folder)


def train(scenario: Scenario, world: World, folder: Path, wanted: Sequence[str],
          observe: rounds.Observer) -> tuple[Checkpoint, list[dict[str, Any]]]:  # fmt: skip
    """Run the rounds and score the test split: the last checkpoint and a row per user."""
    store = PrivateStore(folder / "private")
    node = Node(scenario, world.base, world.dataset, store)
    try:
        node.warm()
        last = checkpoint.latest(folder)
        store.forget_after(last.round if last else 0)
        state = rounds.run(scenario, FusedRuntime(node), node.split.aggregator, node.split.shared_start(), folder, observe)
        return state, node.evaluate(Task(state.round + 1, state.shared), "test", wanted)
    finally:
        node.close()


def merge(table: list[dict[str, Any]], control: str, rows: list[dict[str, Any]]) -> None:
    """Put one control's columns into the users' table, in place of what may be there."""
    found = {row["user"]: row for row in rows}
    for row in table:
        extra = found.get(row["user"], {})
        fresh = {k: v for k, v in extra.items() if k.startswith(f"{control}.")}
        if fresh:
            row |= fresh


def users_csv(table: list[dict[str, Any]]) -> str:
    """The users' table as CSV; an undefined number is an empty cell."""
    columns = list(dict.fromkeys(key for row in table for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def timing(clock: dict[str, float], state: Checkpoint) -> dict[str, Any]:
    """Seconds by part, tokens, and tokens per second of training."""
    marks = list(clock.items())
    seconds = {name: later - at for (name, at), (_, later) in itertools.pairwise(marks) if name != "rounds"}
    for row in state.rows:
        for part, value in row["seconds"].items():
            seconds[part] = seconds.get(part, 0.0) + value
    tokens = sum(row["tokens"] for row in state.rows)
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / max(seconds.get("train", 0.0), 1e-9)}

"""One scenario from start to report, in this process."""

import time
from pathlib import Path
from typing import Any

from client import base as bases
from client import data
from configs.scenario import Scenario
from server import checkpoint, rounds
from server.finish import finish
from server.report.promise import ledgers
from simulations import retrained
from simulations.training import World, train


def run(scenario: Scenario, folder: Path, observe: rounds.Observer = lambda _row: None) -> Path:
    """Run or resume a scenario with its controls and write the report. Returns the page's path.

    The folder holds scenario.yaml, rounds.jsonl, users.csv, timing.json, summary.json and report.html.
    """
    checkpoint.refuse_without(folder, ledgers(scenario).values())
    clock = {"load": time.perf_counter()}
    base = bases.load(scenario.model, scenario.engine.device)
    clock["data"] = time.perf_counter()
    world = World(base, data.load(scenario.data, base.tokenizer, scenario.seed, scenario.life))
    clock["rounds"] = time.perf_counter()
    state, table = train(scenario, world, folder, scenario.controls, observe)
    clock["controls"] = time.perf_counter()
    for name, extra in retrained.rows(scenario, world, folder, observe):
        merge(table, name, extra)
    clock["end"] = time.perf_counter()
    return finish(folder, table, clock, state)


def merge(table: list[dict[str, Any]], control: str, rows: list[dict[str, Any]]) -> None:
    """Put one control's columns into the users' table, in place of what may be there."""
    found = {row["user"]: row for row in rows}
    for row in table:
        extra = found.get(row["user"], {})
        fresh = {k: v for k, v in extra.items() if k.startswith(f"{control}.")}
        if fresh:
            row |= fresh

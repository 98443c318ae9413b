"""A life, period after period: each is an ordinary run that goes on from the one before, over one private store and one ledger.

    FOLDER/scenario.yaml            the life's scenario, life.period=0
    FOLDER/private, ledger.sqlite   what users have, and what they have spent, over all periods
    FOLDER/period-0001/             a run's folder: scenario, rounds, users, summary
        before.json                 scores before the period's first round
        after.json                  scores after its last one; the period is over when it is there
    FOLDER/live.json, live.html     what it has come to

A period that has been begun is gone on with, so that a life that is killed anywhere ends as one that nobody touched. Of a period that
is over, the shared adapter is dropped once the next one has a round: what a life keeps beside its rows does not grow.
"""

import json
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from client import base as bases
from client import data
from client.data.types import Dataset
from client.drifting import sat_out
from client.node import Node
from configs.errors import InputError
from configs.scenario import Scenario
from server import checkpoint, rounds
from server.checkpoint import Checkpoint
from server.finish import tabulate
from server.report.files import training_seconds
from server.report.promise import ledgers, spent
from server.report.summary import plain, write_summary
from server.span import before, last_round
from simulations.life import judge
from simulations.training import World, at_work, go
from strategies.base import Task
from strategies.files import write_text

BEFORE, AFTER = "before.json", "after.json"


def live(scenario: Scenario, folder: Path, observe: rounds.Observer = lambda _row: None) -> Generator[int, None, None]:
    """Run or resume a life and yield each period that is over."""
    refuse_without_ledger(scenario, folder)
    base = bases.load(scenario.model, scenario.engine.device)
    periods = data.every_period(scenario.data, base.tokenizer, scenario.seed, scenario.life)
    for number, period in enumerate(periods, 1):
        if not period.users:
            raise InputError(f"period {number} of {len(periods)}: no user has two examples in it; set fewer life.periods")
    with checkpoint.held(folder):
        checkpoint.begin(folder, scenario)
        for number in range(1, scenario.life.periods + 1):
            if not (place(folder, number) / AFTER).exists():
                _period(of_period(scenario, number), base, periods, folder, observe)
            yield number


def of_period(scenario: Scenario, number: int) -> Scenario:
    """The scenario of one period's run."""
    return replace(scenario, life=replace(scenario.life, period=number))


def place(folder: Path, number: int) -> Path:
    """The folder of a period's run."""
    return folder / f"period-{number:04d}"


def over(scenario: Scenario, folder: Path) -> list[int]:
    """The periods of a life that are over."""
    return [number for number in range(1, scenario.life.periods + 1) if (place(folder, number) / AFTER).exists()]


def done(scenario: Scenario, folder: Path) -> int:
    """How many rounds of a life are over."""
    ended = len(over(scenario, folder))
    last = checkpoint.latest(place(folder, ended + 1))
    return last.round if last else ended * last_round(scenario)


def refuse_without_ledger(scenario: Scenario, folder: Path) -> None:
    """Raise `InputError` where a life has begun, and a ledger that says what it has cost is gone."""
    for name in ledgers(scenario).values():
        if (place(folder, 1) / "rounds.jsonl").exists() and not (folder / name).exists():
            raise InputError(f"{folder / name} is missing, which says what this life has cost; put it back, or choose another folder")


def _period(scenario: Scenario, base: bases.Base, periods: Sequence[Dataset], folder: Path, observe: rounds.Observer) -> None:
    number = scenario.life.period
    here, clock = place(folder, number), {"load": time.perf_counter()}

    def told(row: dict[str, Any]) -> None:
        drop(folder, number - 1)
        observe(row)

    with at_work(scenario, World(base, periods[number - 1]), here, folder) as (node, joint):
        since = checkpoint.latest(place(folder, number - 1)) if number > 1 else None
        if not (here / BEFORE).exists():
            _write(here / BEFORE, _before(node, since, periods))
        clock["rounds"] = time.perf_counter()
        state = go(node, joint, here, told, since)
        clock["test"] = time.perf_counter()
        after = Task(state.round + 1, state.shared)
        table = node.evaluate(after, "test", scenario.controls)
        scores = judge.judged(node, after, judge.tests(periods))
        still = sat_out(node, after.round)
    clock["end"] = time.perf_counter()
    tabulate(here, table, clock, state)
    write_summary(here)
    _write(
        here / AFTER, {"scores": scores, "seconds": training_seconds(state.rows), "epsilon": spent(scenario, here), "sat_out": still}
    )


def _before(node: Node, since: Checkpoint | None, periods: Sequence[Dataset]) -> dict[str, Any]:
    """Scores on all of the coming period, and before the first one on every period."""
    shared = since.shared if since else node.split.shared_start()
    task = Task(before(node.scenario) + 1, shared)
    said = {"prequential": {user: x for user, (x,) in judge.judged(node, task, judge.whole(node.dataset)).items()}}
    return said if since else said | {"scores": judge.judged(node, task, judge.tests(periods))}


def drop(folder: Path, number: int) -> None:
    """Take away what only the next period needed of one that is over: the shared adapter."""
    old = place(folder, number)
    for path in (old / "checkpoint.json", *old.glob("shared-*.safetensors")):
        path.unlink(missing_ok=True)


def _write(path: Path, said: dict[str, Any]) -> None:
    write_text(path, json.dumps(plain(said)))

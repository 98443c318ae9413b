"""`show` of a life's folder: what it has come to, and each of its periods."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from configs.scenario import Scenario
from server.report import tables
from server.report.files import read_rounds
from server.span import last_round
from simulations import usage
from simulations.folders import scenario_of
from simulations.life import page, record
from simulations.life.periods import AFTER, BEFORE, place
from strategies import metrics

HEAD = ("period", "rounds", "users", "sat out", "before training", "after", "seconds", "epsilon")


def shown(folder: Path, users: int = 0, rounds: bool = False) -> Iterator[str | Table]:
    """Tables and lines of a life that is over or not. ``users``: so many of them, ``rounds``: every round of every period."""
    scenario = scenario_of(folder)
    numbers = range(1, scenario.life.periods + 1)
    over = [number for number in numbers if (place(folder, number) / AFTER).exists()]
    found = record.read(folder) if len(over) == len(numbers) else None
    if found:
        yield measures(found)
    yield _periods(scenario, folder)
    for number in numbers if rounds else ():
        if (place(folder, number) / "rounds.jsonl").exists():
            yield tables.rounds_table(place(folder, number))
    if users and found:
        yield _users(found, users)
    if not found:
        again = f"{usage.PROGRAM} live {shlex.quote(str(folder / 'scenario.yaml'))} --out {shlex.quote(str(folder))}"
        yield f"{len(over)} of {len(numbers)} periods are over; go on with: {again}"


def measures(found: record.Record) -> Table:
    """A life's measures: mean over users, the worst tenth of them, and the definition."""
    table = Table("", found["metric"], "worst tenth", "what it is", title=page.title(found), box=None)
    for cells in page.lines(found):
        table.add_row(*map(Text, cells))
    return table


def _periods(scenario: Scenario, folder: Path) -> Table:
    """A line for each period that has begun. Losses are means over its users: on all of it before, on its test split after it."""
    table = Table(*HEAD, title="nll on the period's own data", title_justify="left", box=None)
    for number in range(1, scenario.life.periods + 1):
        here = place(folder, number)
        begun, ended = _read(here / BEFORE), _read(here / AFTER)
        if begun is None:
            break
        done = len(read_rounds(here)) if (here / "rounds.jsonl").exists() else 0
        cells = [str(number), f"{done} of {last_round(scenario)}", str(len(begun["prequential"]))]
        if ended:
            scores, epsilon = (row[number - 1] for row in ended["scores"].values()), ended["epsilon"].values()
            spent = ", ".join(f"{value:.3f}" for value in epsilon) or "-"
            cells += [
                str(ended.get("sat_out", 0)),
                _mean(begun["prequential"].values()),
                _mean(scores),
                f"{ended['seconds']:.1f}",
                spent,
            ]
        else:
            cells += ["", _mean(begun["prequential"].values())]
        table.add_row(*map(Text, cells))
    return table


def _users(found: record.Record, count: int) -> Table:
    table = Table("user", *page.WORDS.values(), box=None)
    by_user: dict[str, dict[str, float | None]] = found["by_user"]
    for user in list(by_user["ap"])[:count]:
        table.add_row(*map(Text, (user, *(page.number(by_user[name][user]) for name in page.WORDS))))
    return table


def _mean(values: Any) -> str:
    known = [value for value in values if value is not None]
    return page.number(metrics.mean(known) if known else None)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None

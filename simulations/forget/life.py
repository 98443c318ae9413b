"""Forgetting in a life, whose periods are runs over one store: between two of them, or once it is over.

The new life has the periods that were over, and the one that had begun if nothing is trained anew; `live` goes on with it.
"""

import csv
import io
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.scenario import Scenario
from server import checkpoint
from server.checkpoint import Checkpoint
from server.report.summary import write_summary
from simulations.life import periods, record
from simulations.life.periods import AFTER, BEFORE, of_period, place
from strategies.files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulations.forget.plan import Plan

SHUFFLED = "shuffled."  # columns of a row that is scored with the next user's adapter


def last(scenario: Scenario, folder: Path) -> Scenario:
    """Of a life the scenario of its last period that is over; of a run its own."""
    return of_period(scenario, periods.over(scenario, folder)[-1]) if scenario.life.periods else scenario


def state(scenario: Scenario, folder: Path) -> Checkpoint:
    """What is shared now: of a life in the period that has begun last."""
    ended = periods.over(scenario, folder)[-1] if scenario.life.periods else 0
    found = (
        checkpoint.latest(place(folder, ended + 1)) or checkpoint.latest(place(folder, ended)) if ended else checkpoint.latest(folder)
    )
    assert found
    return found


def replayed(asked: "Plan", say: "Callable[[str], None]") -> float:
    """Live the periods that were over once more, without them; seconds of training."""
    ended = periods.over(asked.old, asked.run)[-1]
    with closing(periods.live(asked.new, asked.stage, lambda row: say(f"round {row['round']} without them"))) as lived:
        for number in lived:
            if number == ended:
                break
    if ended == asked.new.life.periods:
        record.write(asked.stage)
    return sum(json.loads((place(asked.stage, number) / AFTER).read_text())["seconds"] for number in range(1, ended + 1))


def left(asked: "Plan") -> float:
    """Take a life over as it is, without what it keeps and says of them. Nothing trains."""
    from simulations.forget.suite import shelve  # which is about runs, and needs this file

    with checkpoint.held(asked.stage):
        checkpoint.begin(asked.stage, asked.new)
        shelve(asked)
        for number in range(1, asked.old.life.periods + 1):
            old, new = place(asked.run, number), place(asked.stage, number)
            if (old / "scenario.yaml").exists():
                _period(of_period(asked.new, number), old, new, set(asked.gone))
    if (asked.run / "live.json").exists():
        record.write(asked.stage)
    return 0.0


def _period(scenario: Scenario, old: Path, new: Path, gone: set[str]) -> None:
    """One period's folder without lines about ``gone``."""
    checkpoint.begin(new, scenario)
    for name in ("rounds.jsonl", "timing.json"):
        if (old / name).exists():
            write_text(new / name, (old / name).read_text())
    for name in (BEFORE, AFTER):
        if (old / name).exists():
            write_text(new / name, json.dumps(_but(json.loads((old / name).read_text()), gone)))
    if (old / "users.csv").exists():
        write_text(new / "users.csv", rows_but((old / "users.csv").read_text(), gone))
        write_summary(new)
    if (now := checkpoint.latest(old)) is not None:
        checkpoint.commit(new, replace(now))


def _but(said: dict[str, Any], gone: set[str]) -> dict[str, Any]:
    return {key: {u: x for u, x in value.items() if u not in gone} if isinstance(value, dict) else value for key, value in said.items()}


def rows_but(table: str, gone: set[str]) -> str:
    r"""A users' table without some of them, and without the row that scores a user with another's adapter.

    >>> rows_but("user,seen,shuffled.nll\\nann,True,1.0\\nbob,True,2.0\\n", {"ann"})
    'user,seen\\nbob,True\\n'
    """
    head, *lines = csv.reader(io.StringIO(table))
    stay = [at for at, name in enumerate(head) if not name.startswith(SHUFFLED)]
    text = io.StringIO()
    user = head.index("user")
    csv.writer(text, lineterminator="\n").writerows([row[at] for at in stay] for row in (head, *lines) if row[user] not in gone)
    return text.getvalue()

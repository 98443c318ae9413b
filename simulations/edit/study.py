"""`edit measure`: a table of every editor and none, over users and seeds; of a life also after one period more."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from client.editing import records
from client.editing.bench import Bench
from configs.errors import InputError
from configs.scenario import Scenario, label, load
from simulations import folders
from simulations.edit import place, suite
from simulations.edit.suite import Case
from simulations.life import periods
from strategies.editors import EDITORS
from strategies.files import write_text
from strategies.tree import State

FILE, NONE = "edit.json", "none"
MEASURES = {
    "efficacy": "share of edited prompts whose answer is the new one",
    "generality": "share of other prompts about the same whose answer is the new one",
    "locality": "share of unrelated prompts whose answer stays",
    "kl": "KL(before || after) at unrelated prompts, nats",
}


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    users: int
    each: int  # edits of a user, of each kind
    part: str  # whose films are edited
    layer: int
    kinds: tuple[str, ...] = ("film", "genre")


@dataclass(frozen=True)
class Tried:
    """Edits of one kind by one editor, and what they come to."""

    kind: str
    editor: str
    cases: list[Case]
    changes: Mapping[str, State]
    seconds: float


def study(what: str, overrides: list[str], out: Path | None, plan: Plan, seeds: int) -> tuple[dict[str, Any], Path]:
    """Measure a finished run as it is, or lives of a scenario; returns what FOLDER/edit.json holds, and where it lies."""
    if folders.is_run(Path(what)):
        if overrides or out or seeds > 1:
            raise InputError(f"{what} is a run that is there already: it takes no KEY=VALUE, --out or --seeds")
        rows, folder = _run(Path(what), plan), Path(what)
    else:
        scenario = load(what, overrides)
        folder = out or Path("lives") / f"edits-{label(scenario)}"
        rows = [row for seed in range(scenario.seed, scenario.seed + seeds) for row in _life(what, overrides, seed, folder, plan)]
    found = {
        "users": plan.users, "edits": plan.each, "split": plan.part, "layer": plan.layer,
        "seeds": sorted({row["seed"] for row in rows}), "definitions": MEASURES, "rows": rows,
    }  # fmt: skip
    write_text(folder / FILE, json.dumps(found, indent=1))
    return found, folder / FILE


def _run(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    place.refuse_flower(folder)
    at = place.find(folder)
    with place.bench(at, layer=plan.layer) as bench:
        return _rows(bench, at, tried(bench, at, plan), at.scenario.seed, "at once")


def _life(what: str, overrides: list[str], seed: int, folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """Live up to the last period but one, measure, live the last, and measure the same edits again."""
    scenario, home = load(what, [*overrides, f"seed={seed}"]), folder / f"seed-{seed}"
    _refuse(scenario, home)
    lived, rows = periods.live(scenario, home), list[dict[str, Any]]()
    for _ in range(scenario.life.periods - 1):
        next(lived)
    at = place.find(home)
    with place.bench(at, layer=plan.layer) as bench:
        found = tried(bench, at, plan)
        rows += _rows(bench, at, found, seed, "at once")
    for _ in lived:
        pass
    at = place.find(home)
    with place.bench(at, layer=plan.layer) as bench:
        return rows + _rows(bench, at, found, seed, "a period later")


def _refuse(scenario: Scenario, home: Path) -> None:
    if scenario.life.periods < 2:
        raise InputError(
            f"life.periods is {scenario.life.periods}: edits are measured before and after a period, so it must be 2 or more"
        )
    folders.refuse_folder(scenario, home)
    folders.refuse(periods.of_period(scenario, 1), periods.place(home, 1))
    if periods.place(home, scenario.life.periods).exists():
        raise InputError(f"{home} has begun its last period, before which edits would be made; choose another folder with --out")


def tried(bench: Bench, at: place.Place, plan: Plan) -> list[Tried]:
    """Every editor on every kind of edit, and none."""
    users = _users(bench, at, plan)
    found: list[Tried] = []
    for kind in plan.kinds:
        cases = suite.cases(bench, users, plan.each, plan.part, kind)
        found.append(Tried(kind, NONE, cases, {}, 0.0))
        found += [Tried(kind, name, cases, *suite.learnt(bench, users, cases, records.built(name, {}))) for name in EDITORS]
    return found


def _users(bench: Bench, at: place.Place, plan: Plan) -> dict[str, State]:
    return {user: bench.user(user, at.task) for user in list(bench.node.dataset.users)[: plan.users]}


def _rows(bench: Bench, at: place.Place, found: Sequence[Tried], seed: int, when: str) -> list[dict[str, Any]]:
    users = {case.user: bench.user(case.user, at.task) for case in found[0].cases}
    before = {x.kind: suite.said(bench, users, x.cases, {}) for x in found if x.editor == NONE}
    return [
        {"seed": seed, "when": when, "kind": x.kind, "editor": x.editor, "count": len(x.cases), "seconds": x.seconds}
        | suite.measure(before[x.kind], suite.said(bench, users, x.cases, x.changes) if x.changes else before[x.kind])
        for x in found
    ]


def table(found: Mapping[str, Any]) -> Table:
    """Means over seeds."""
    shown = Table(header_style="bold", box=None)
    for name in ("kind", "when", "editor", "edits", *MEASURES, "s / edit"):
        shown.add_column(name, no_wrap=True)
    groups: dict[tuple[str, ...], list[Any]] = {}
    for row in found["rows"]:
        groups.setdefault((row["kind"], row["when"], row["editor"]), []).append(row)
    for name, rows in groups.items():
        numbers = [f"{fmean(row[measure] for row in rows):.3f}" for measure in (*MEASURES, "seconds")]
        shown.add_row(*map(Text, (*name, str(sum(row["count"] for row in rows)), *numbers)))
    return shown

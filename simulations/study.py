"""A scenario under several seeds: one run each with its controls, and what they say together.

A seed draws the users, the adapters' start, the rounds' users and the order of examples. The interval of one run is over its users; the
spread of a study is over its seeds. Users of two seeds overlap, so seeds are no independent samples of users, and none is claimed.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from configs.scenario import Scenario, scenario_hash
from server.report import controls
from server.report.files import write_text
from server.report.summary import MAIN, summarize
from server.report.tables import markdown_rows
from server.rounds import Observer, last_round
from simulations.run import run
from simulations.trackers import both, tracker

Row = dict[str, Any]
Watch = Callable[[int, int], AbstractContextManager[Observer]]


def study(scenario: Scenario, seeds: Sequence[int], folder: Path, watch: Watch, track: Sequence[str] = ()) -> dict[str, Any]:
    """Run or resume the scenario under each seed, in ``folder/seed-N``; returns what ``folder/study.json`` then holds.

    ``folder/study.md`` is the same as a table. ``watch(seed, rounds)`` is a context that gives an observer of the rounds.
    """
    found = []
    for seed in seeds:
        place = folder / f"seed-{seed}"
        if not (place / "summary.json").is_file():
            one = replace(scenario, seed=seed)
            with watch(seed, last_round(one)) as observe, tracker(track, one, place) as tell:
                run(one, place, both(observe, tell))
        found.append(summarize(place))
    together = combine(scenario, found)
    write_text(folder / "study.json", json.dumps(together, indent=1) + "\n")
    write_text(folder / "study.md", markdown(together))
    return together


def combine(scenario: Scenario, summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds and their spread (lowest and highest), per row, and of what `MAIN` gains on each row.

    ``wins`` counts the seeds in which the 95 % interval over users leaves zero out on the good side.
    """
    names = [name for name in summaries[0]["rows"] if all(name in s["rows"] for s in summaries)]
    gained = [name for name in names if all(name in s["gains"] for s in summaries)]
    return {
        "name": scenario.name,
        "scenario_hash": scenario_hash(scenario),
        "seeds": [s["seed"] for s in summaries],
        "users": [s["users"] for s in summaries],
        "rows": {name: _row([s["rows"][name] for s in summaries]) for name in names},
        "gains": {name: _gain([s["gains"][name] for s in summaries]) for name in gained},
        "helped": [s["helped"] for s in summaries],
        "harmed": [s["harmed"] for s in summaries],
        "seconds": [sum(s["seconds"].values()) for s in summaries],
    }


HEADS = ("nll (lowest to highest seed)", "worst tenth", "AUC", "saved by shared + private, per seed", "wins")


def table(found: dict[str, Any]) -> Table:
    """A study for a person: nll and AUC per row, and what shared + private saves against it."""
    shown = Table(title=title(found), box=None)
    shown.add_column("")
    for name in HEADS:
        shown.add_column(name, justify="right")
    for name, cells in _lines(found):
        shown.add_row(controls.words(name), *cells, style="bold" if name == MAIN else "")
    return shown


def markdown(found: dict[str, Any]) -> str:
    """The same table as Markdown."""
    body = [(f"**{controls.words(name)}**" if name == MAIN else controls.words(name), *cells) for name, cells in _lines(found)]
    return "\n".join([f"{title(found)}:", "", *markdown_rows(("", *HEADS), body, 1)]) + "\n"


def title(found: dict[str, Any]) -> str:
    """Which scenario, seeds and users a study is of."""
    seeds, users = (", ".join(map(str, found[name])) for name in ("seeds", "users"))
    return f"{found['name']}-{found['scenario_hash']}, seeds {seeds}, users {users}"


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, row in found["rows"].items():
        gain = found["gains"].get(name)
        each = "  ".join(f"{-mean:+.4f}" for mean in gain["means"]) if gain else "-"
        wins = f"{gain['wins']} of {len(gain['means'])}" if gain else "-"
        auc = f"{row['auc']['mean']:.3f}" if "auc" in row else "-"
        yield name, (_spread(row["nll"]), f"{row['worst_decile']['mean']:.3f}", auc, each, wins)


def _row(rows: Sequence[Row]) -> Row:
    values = {"nll": [r["mean"] for r in rows], "worst_decile": [r["worst_decile"] for r in rows]}
    if all("auc" in r for r in rows):
        values["auc"] = [r["auc"] for r in rows]
    return {name: _over(found) for name, found in values.items()}


def _gain(gains: Sequence[Row]) -> Row:
    found = {"mean": statistics.fmean(g["mean"] for g in gains), "means": [g["mean"] for g in gains],
             "ci95": [g["ci95"] for g in gains], "wins": sum(g["ci95"][1] < 0 for g in gains)}  # fmt: skip
    if all("auc" in g for g in gains):
        found["auc"] = {"mean": statistics.fmean(g["auc"]["mean"] for g in gains), "ci95": [g["auc"]["ci95"] for g in gains]}
    return found


def _over(values: Sequence[float]) -> Row:
    return {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}


def _spread(over: Row) -> str:
    return f"{over['mean']:.4f} ({over['low']:.4f} to {over['high']:.4f})"

"""What a study has found: for a terminal, as Markdown and as JSON. The smaller an aggregator's error, the earlier its line."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from server.report.tables import markdown_rows
from simulations.listing import trains
from simulations.synthetic.federation import LOST, Round
from simulations.synthetic.suite import AXES, BASE, Found, Outcome, left_out, rounds_of, seeds_of, settings
from strategies import aggregators
from strategies.files import write_text

MEASURES = ("error", "excess")
WORDS = {
    "error": "Error of aggregation, against what the ideal aggregate changes",
    "excess": "Excess loss over the best adapter of the rank: 1 before training, 0 at the optimum",
}
SEEN = {None: "not measured", True: "yes", False: "NO"}


def names(found: Found) -> list[str]:
    """The aggregators, those with the smallest error of aggregation first."""
    known = dict.fromkeys(name for name, _ in found)
    return sorted(known, key=lambda name: over(found[name, BASE], "error")["mean"])


def over(outcomes: Sequence[Outcome], measure: str) -> dict[str, float]:
    """Mean, lowest and highest seed of a number of outcomes."""
    values = [getattr(outcome, measure) for outcome in outcomes]
    return {"mean": math.fsum(values) / len(values), "low": min(values), "high": max(values)}


def curve(outcomes: Sequence[Outcome], measure: str) -> list[float]:
    """The mean over seeds after each round, as far as all of them go; an error is held against the change of its round."""
    rows = zip(*(outcome.rounds for outcome in outcomes), strict=False)
    return [math.fsum(_of_round(row, measure) for row in each) / len(each) for each in rows]


def _of_round(row: Round, measure: str) -> float:
    return row.excess if measure == "excess" else row.error / row.change if row.change else 0.0


def digest(rounds: int, seeds: int) -> str:
    """Twelve hexadecimal digits over all that decides the numbers, but the aggregators themselves."""
    tree = [[axis, at, asdict(setting)] for (axis, at), setting in settings().items()]
    return hashlib.blake2b(json.dumps([tree, rounds, seeds]).encode(), digest_size=6).hexdigest()


def title(found: Found) -> str:
    """What a study is of: the digits of its settings, its seeds and rounds."""
    rounds, seeds = rounds_of(found), seeds_of(found)
    return f"synthetic-{digest(rounds, seeds)}, seeds {', '.join(map(str, range(seeds)))}, {rounds} rounds"


def lines(found: Found) -> Iterator[dict[str, Any]]:
    """One mapping per aggregator and point of an axis; at the base setting with its curves over rounds."""
    for name in names(found):
        for (axis, at), setting in settings().items():
            outcomes = found[name, setting]
            curves = {f"{measure}_by_round": curve(outcomes, measure) for measure in MEASURES if axis == "skew" and setting == BASE}
            yield {"aggregator": name, "axis": axis, "at": at, **{m: over(outcomes, m) for m in MEASURES}, **curves}


def write(found: Found, verdicts: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write `synthetic.json` and `synthetic.md`; equal seeds give equal files."""
    tree = {"title": title(found), "base": asdict(BASE), "left_out": left_out(), "expectations": verdicts, "lines": list(lines(found))}
    write_text(folder / "synthetic.json", json.dumps(tree, indent=1) + "\n")
    write_text(folder / "synthetic.md", markdown(found, verdicts))


def table(found: Found) -> Table:
    """The base setting and the attacked one, for a terminal."""
    shown = Table(title=title(found), box=None, title_justify="left", pad_edge=False)
    for head in heads():
        shown.add_column(head, justify="left" if head in ("aggregator", "trains") else "right", no_wrap=True)
    for name in names(found):
        shown.add_row(*cells(found, name))
    return shown


def heads() -> tuple[str, ...]:
    """The columns of the first table."""
    return ("aggregator", "trains", "exact", "error (lowest to highest seed)", "excess (lowest to highest seed)", "uneven sizes: error",
            "16 users: excess", "one attacker among them")  # fmt: skip


def cells(found: Found, name: str) -> tuple[str, ...]:
    """A line of it."""
    built, points = aggregators.build(name, {}), settings()
    return (
        name,
        trains(built),
        "yes" if built.exact else "",
        *(_spread(over(found[name, BASE], measure)) for measure in MEASURES),
        number(over(found[name, points["uneven", 1.0]], "error")["mean"]),
        *(number(over(found[name, points["attackers", at]], "excess")["mean"]) for at in (0, 1)),
    )


def markdown(found: Found, verdicts: Sequence[Mapping[str, Any]]) -> str:
    """All tables as Markdown."""
    parts = [f"{title(found)}; users {BASE.users}, rank {BASE.rank}, skew {BASE.skew} where nothing else is said:", ""]
    parts += markdown_rows(heads(), (cells(found, name) for name in names(found)), 3)
    for measure in MEASURES:
        columns = [(axis, at) for axis in ("skew", "users", "rank") for at in AXES[axis][1]]
        body = ((name, *(number(over(found[name, settings()[c]], measure)["mean"]) for c in columns)) for name in names(found))
        parts += ["", f"{WORDS[measure]}; means over seeds:", ""]
        parts += markdown_rows(("aggregator", *(f"{axis} {at:g}" for axis, at in columns)), body, 1)
    parts += ["", "What theory says, and whether the numbers do; the control is the same check where it must fail:", ""]
    said = ((v["name"], v["reason"], v["source"], SEEN[v["holds"]], SEEN[v["control"]], str(v["checks"])) for v in verdicts)
    parts += markdown_rows(("expectation", "because", "source", "holds", "control fails", "checks"), said, 5)
    parts += ["", *(f"Left out: `{name}`: {reason}." for name, reason in left_out().items())]
    return "\n".join(parts) + "\n"


def number(value: float) -> str:
    """Three digits; what is rounding shows as such, and what has diverged says so."""
    if value >= LOST:
        return "diverges"
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"


def _spread(measured: Mapping[str, float]) -> str:
    return f"{number(measured['mean'])} ({number(measured['low'])} to {number(measured['high'])})"

"""The table of a study: a line per combination of labels, means over seeds and their spread; for people, as Markdown and as CSV.

The *gain* of a line is what its model saves over the base, in nats; *kept* is its share of the first line's gain, seed by seed.
Users are paired within a seed: the same users and test examples stand in both lines.
"""

import csv
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from configs.scenario import Scenario, scenario_hash
from server.report import controls
from server.report.files import Run, read
from server.report.summary import MAIN, summary_of
from server.report.tables import against
from simulations.compare.plan import Plan

Found = dict[str, Any]


@dataclass(frozen=True)
class Over:
    """A number over seeds."""

    mean: float
    low: float
    high: float


def found(plan: Plan, places: Mapping[str, Path]) -> list[Found]:
    """One mapping per line: ``labels``, ``budgets`` (the epsilon of each guarantee), ``rows`` (control -> nll, worst_decile and auc
    as `Over`), ``gain`` over the base, ``kept``, ``saved``, ``helped`` and ``harmed``, ``epsilon`` (spent), ``kb_up``, ``seconds``.

    ``saved`` is against the first line, where both score the same examples: ``means`` of the nats per user, one for each seed, and
    ``wins`` and ``losses``, the seeds whose 95 % interval over users lies above and below zero. What a line lacks is None.
    """
    runs = [[read(places[scenario_hash(scenario)]) for scenario in row.scenarios] for row in plan.rows]
    return [
        {"labels": dict(zip(plan.axes, row.labels, strict=True)), "budgets": _budgets(row.scenarios[0]), **_line(of_line, runs[0])}
        for row, of_line in zip(plan.rows, runs, strict=True)
    ]


def _line(runs: Sequence[Run], first: Sequence[Run]) -> Found:
    summaries, before = [summary_of(run) for run in runs], [summary_of(run) for run in first]
    names = controls.ordered(name for summary in summaries for name in summary["rows"])
    return {
        "users": [summary["users"] for summary in summaries],
        "rows": {name: _row([summary["rows"][name] for summary in summaries]) for name in names if _everywhere(name, summaries)},
        "gain": _over([_gain(summary) for summary in summaries]),
        "kept": _kept(summaries, before),
        "saved": _saved(runs, first),
        **{name: _over([summary[name] for summary in summaries]) for name in ("helped", "harmed")},
        "against_bias": _over([-s["gains"]["user_bias"]["mean"] if "user_bias" in s["gains"] else None for s in summaries]),
        "unseen": _over([s.get("unseen", {}).get("rows", {}).get("shared", {}).get("mean") for s in summaries]),
        "epsilon": {name: max(s["epsilon"][name] for s in summaries) for name in summaries[0]["epsilon"]},
        "kb_up": _over([summary["bytes_up_per_user_round"] / 1e3 for summary in summaries]),
        "seconds": _over([sum(summary["seconds"].values()) for summary in summaries]),
        "runs": [str(run.directory) for run in runs],
    }


def _budgets(scenario: Scenario) -> dict[str, float]:
    """The epsilon of each guarantee that is claimed."""
    privacy = scenario.privacy
    claimed = {"example": privacy.promises_examples, "user": privacy.of_users}
    return {name: getattr(privacy, name).epsilon for name, is_claimed in claimed.items() if is_claimed}


def _everywhere(name: str, summaries: Iterable[Found]) -> bool:
    return all(name in summary["rows"] for summary in summaries)


def _row(rows: Sequence[Found]) -> dict[str, Over | None]:
    return {metric: _over([row.get(key) for row in rows]) for metric, key in (("nll", "mean"), ("worst_decile",) * 2, ("auc",) * 2)}


def _over(values: Sequence[float | None]) -> Over | None:
    here = [value for value in values if value is not None]
    return Over(statistics.fmean(here), min(here), max(here)) if here and len(here) == len(values) else None


def _gain(summary: Found) -> float | None:
    rows = [summary["rows"].get(name, {}).get("mean") for name in ("base", MAIN)]
    return None if None in rows else rows[0] - rows[1]


def _kept(summaries: Sequence[Found], before: Sequence[Found]) -> Over | None:
    pairs = [(_gain(here), _gain(there)) for here, there in zip(summaries, before, strict=True)]
    return _over([None if here is None or not there else here / there for here, there in pairs])


def _saved(runs: Sequence[Run], first: Sequence[Run]) -> Found | None:
    gains = [against(run, other).get(MAIN) for run, other in zip(runs, first, strict=True)]
    known = [gain for gain in gains if gain is not None]
    if runs is first or len(known) < len(gains):
        return None
    return {
        "means": [-gain["mean"] for gain in known],
        "wins": sum(gain["ci95"][1] < 0 for gain in known),
        "losses": sum(gain["ci95"][0] > 0 for gain in known),
    }


def heads(lines: Sequence[Found]) -> tuple[str, ...]:
    """The names of the columns after the axes'."""
    return ("nll (lowest to highest seed)", *map(controls.words, _others(lines)), "kept", "saved against the first, per seed",
            "worst tenth", "AUC", "helped / harmed", "epsilon", "kB up", "seconds")  # fmt: skip


def cells(line: Found, lines: Sequence[Found]) -> tuple[str, ...]:
    """A line's cells under `heads`."""
    rows, saved = line["rows"], line["saved"]
    main: Mapping[str, Over | None] = rows.get(MAIN, {})
    return (
        _spread(main.get("nll")),
        *(_mean(rows.get(name, {}).get("nll")) for name in _others(lines)),
        _mean(line["kept"], ".2f"),
        " ".join(f"{mean:+.4f}" for mean in saved["means"]) if saved else "-",
        _mean(main.get("worst_decile"), ".3f"),
        _mean(main.get("auc"), ".3f"),
        f"{_mean(line['helped'], '.0f')} / {_mean(line['harmed'], '.0f')}",
        ", ".join(f"{epsilon:.2f} {name}" for name, epsilon in line["epsilon"].items()) or "none",
        _mean(line["kb_up"], ".1f"),
        _mean(line["seconds"], ".0f"),
    )


def _others(lines: Sequence[Found]) -> list[str]:
    """The controls that any line has, beside the main row."""
    return [name for name in controls.ordered(name for line in lines for name in line["rows"]) if name != MAIN]


def table(plan: Plan, lines: Sequence[Found]) -> Table:
    """The lines for a terminal."""
    shown = Table(title=title(plan, lines), box=None, title_justify="left", pad_edge=False)
    for name in plan.axes:
        shown.add_column(name, no_wrap=True)
    for name in heads(lines):
        shown.add_column(name, justify="right")
    for line in lines:
        shown.add_row(*(Text(label) for label in line["labels"].values()), *cells(line, lines))
    return shown


def markdown(plan: Plan, lines: Sequence[Found]) -> str:
    """The lines as Markdown."""
    head = heads(lines)
    rows = [(*plan.axes, *head), (*(["---"] * len(plan.axes)), *(["--:"] * len(head)))]
    rows += [(*line["labels"].values(), *cells(line, lines)) for line in lines]
    return "\n".join([f"{title(plan, lines)}:", "", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def to_csv(plan: Plan, lines: Sequence[Found]) -> str:
    """The lines with every number, unrounded: a column for the mean, the lowest and the highest seed of each."""
    flat = [dict(_flat(line)) for line in lines]
    heads = [*plan.axes, *dict.fromkeys(name for line in flat for name in line if name not in plan.axes)]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def title(plan: Plan, lines: Sequence[Found]) -> str:
    """Which study, seeds and users the table is of."""
    users = sorted({count for line in lines for count in line["users"]})
    counts = f"{users[0]:,}" if len(users) == 1 else f"{users[0]:,} to {users[-1]:,}"
    return f"{plan.name}, seeds {', '.join(map(str, plan.seeds))}, {counts} users"


def _flat(line: Found) -> Iterator[tuple[str, Any]]:
    yield from line["labels"].items()
    for row, metrics in line["rows"].items():
        for metric, over in metrics.items():
            yield from _columns(f"{row}.{metric}", over)
    for name in ("gain", "kept", "helped", "harmed", "against_bias", "unseen", "kb_up", "seconds"):
        yield from _columns(name, line[name])
    for name, epsilon in line["epsilon"].items():
        yield f"epsilon.{name}", epsilon


def _columns(name: str, over: Over | None) -> Iterator[tuple[str, float]]:
    if over is not None:
        yield from ((name, over.mean), (f"{name}.low", over.low), (f"{name}.high", over.high))


def _mean(over: Over | None, form: str = ".4f") -> str:
    return "-" if over is None else format(over.mean, form)


def _spread(over: Over | None) -> str:
    return "-" if over is None else f"{over.mean:.4f} ({over.low:.4f} to {over.high:.4f})"

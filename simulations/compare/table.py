"""The table of a study: a line per combination of labels, means over seeds and their spread; for people, as Markdown and as CSV.

A line's *own* row is what its users end up with: shared + private, or the one of both that its scheme has. The *gain* of a line is what
that saves over the base, in nats; *kept* is its share of the first line's gain, seed by seed. Users are paired within a seed: the same
users and test examples stand in both lines.
"""

import csv
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from configs.scenario import Scenario, scenario_hash
from server.report import controls
from server.report.files import Run, read
from server.report.summary import MAIN, summary_of
from server.report.tables import differences, markdown_rows
from simulations.compare.paired import Paired, own_row, paired
from simulations.compare.plan import Plan
from simulations.compare.space import assigned
from simulations.compare.sweep import Trial
from strategies import metrics

Found = dict[str, Any]


@dataclass(frozen=True)
class Over:
    """A number over seeds."""

    mean: float
    low: float
    high: float


def found(plan: Plan, places: Mapping[str, Path], tuned: Sequence[Trial] = ()) -> list[Found]:
    """One mapping per line: ``labels``, ``budgets`` (the epsilon of each guarantee), ``scenarios`` (their hashes), ``rows`` (control ->
    nll, worst_decile and auc as `Over`), ``own`` (of these, what its users end up with), ``gain`` over the base, ``kept``, ``saved``,
    ``paired``, ``helped`` and ``harmed``, ``unseen`` (nll of users who never trained), ``epsilon`` (spent), ``kb_up`` and ``kb_down``
    (per user and round), ``seconds``; ``tuned``: the trial of a sweep whose settings the line was run with.

    ``saved`` is against the first line, where both score the same examples: ``means`` of the nats per user, one for each seed, and
    ``wins`` and ``losses``, the seeds whose 95 % interval over users lies above and below zero. ``paired`` is the test over users
    (`simulations.compare.paired`). What a line lacks is None.
    """
    runs = [[read(places[scenario_hash(scenario)]) for scenario in row.scenarios] for row in plan.rows]
    return [
        {
            "labels": dict(zip(plan.axes, row.labels, strict=True)),
            "budgets": _budgets(row.scenarios[0]),
            "scenarios": [scenario_hash(scenario) for scenario in row.scenarios],
            **_line(of_line, runs[0]),
            "paired": test,
            "tuned": best,
        }
        for row, of_line, test, best in zip(plan.rows, runs, paired(runs), tuned or [None] * len(runs), strict=True)
    ]


def _line(runs: Sequence[Run], first: Sequence[Run]) -> Found:
    summaries, gains = [summary_of(run) for run in runs], [_gain(run) for run in runs]
    names = controls.ordered(name for summary in summaries for name in summary["rows"])
    rows = {name: _row([summary["rows"][name] for summary in summaries]) for name in names if _everywhere(name, summaries)}
    return {
        "users": [summary["users"] for summary in summaries],
        "rows": rows,
        "own": rows.get(own_row(runs[0].scenario), {}),
        "gain": _over(gains),
        "kept": _kept(gains, [_gain(run) for run in first]),
        "saved": _saved(runs, first),
        **{name: _over([summary[name] for summary in summaries]) for name in ("helped", "harmed")},
        "against_bias": _over([-s["gains"]["user_bias"]["mean"] if "user_bias" in s["gains"] else None for s in summaries]),
        "unseen": _over([s.get("unseen", {}).get("rows", {}).get("shared", {}).get("mean") for s in summaries]),
        "epsilon": {name: max(s["epsilon"][name] for s in summaries) for name in summaries[0]["epsilon"]},
        **{f"kb_{way}": _over([s[f"bytes_{way}_per_user_round"] / 1e3 for s in summaries]) for way in ("up", "down")},
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


def _gain(run: Run) -> float | None:
    """What users save over the base; None where a row is missing or a loss is not finite."""
    rows = summary_of(run)["rows"]
    base, own = (rows.get(name, {}).get("mean") for name in ("base", own_row(run.scenario)))
    return None if base is None or own is None else base - own


def _kept(gains: Sequence[float | None], before: Sequence[float | None]) -> Over | None:
    return _over([None if here is None or not there else here / there for here, there in zip(gains, before, strict=True)])


def _saved(runs: Sequence[Run], first: Sequence[Run]) -> Found | None:
    pairs = [differences(run, other, own_row(run.scenario), own_row(other.scenario)) for run, other in zip(runs, first, strict=True)]
    if runs is first or not all(pairs):
        return None
    spans = [metrics.ci95([*pair.values()]) for pair in pairs]
    return {
        "means": [-metrics.mean([*pair.values()]) for pair in pairs],
        "wins": sum(high < 0 for _, high in spans),
        "losses": sum(low > 0 for low, _ in spans),
    }


def heads(lines: Sequence[Found]) -> tuple[str, ...]:
    """The names of the columns after the axes'."""
    return ("nll (lowest to highest seed)", *map(controls.words, _others(lines)), "kept", "saved against the first, per seed",
            "per user: median saved, better off, p", "worst tenth", "AUC", "helped / harmed", *(["unseen users"] * _unseen(lines)),
            "epsilon", "kB up / down", "seconds")  # fmt: skip


def cells(line: Found, lines: Sequence[Found]) -> tuple[str, ...]:
    """A line's cells under `heads`."""
    rows, own, saved = line["rows"], line["own"], line["saved"]
    return (
        _spread(own.get("nll")),
        *(_mean(rows.get(name, {}).get("nll")) for name in _others(lines)),
        _mean(line["kept"], ".2f"),
        " ".join(f"{mean:+.4f}" for mean in saved["means"]) if saved else "-",
        _tested(line["paired"]),
        _mean(own.get("worst_decile"), ".3f"),
        _mean(own.get("auc"), ".3f"),
        f"{_mean(line['helped'], '.0f')} / {_mean(line['harmed'], '.0f')}",
        *([_mean(line["unseen"])] * _unseen(lines)),
        ", ".join(f"{epsilon:.2f} {name}" for name, epsilon in line["epsilon"].items()) or "none",
        f"{_mean(line['kb_up'], '.1f')} / {_mean(line['kb_down'], '.1f')}",
        _mean(line["seconds"], ".0f"),
    )


def _unseen(lines: Sequence[Found]) -> bool:
    return any(line["unseen"] for line in lines)


def _tested(test: Paired | None) -> str:
    if test is None:
        return "-"
    return f"{test.median:+.4f}, {test.better:.0%}, {'<0.001' if test.holm < 0.001 else format(test.holm, '.2g')}"


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
    body = [(*line["labels"].values(), *cells(line, lines)) for line in lines]
    below = ["", sweeping(plan, lines)] if plan.sweep else []
    table = markdown_rows((*plan.axes, *heads(lines)), body, len(plan.axes))
    return "\n".join([f"{title(plan, lines)}:", "", *table, *below]) + "\n"


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


def sweeping(plan: Plan, lines: Sequence[Found]) -> str:
    """How a study's settings were found, in a sentence or two."""
    sweep = plan.sweep
    assert sweep
    counted = " That choice read users' data; no epsilon counts it." if any(line["budgets"] for line in lines) else ""
    found = "; ".join(f"{' / '.join(line['labels'].values())}: {tuned(line)}" for line in lines)
    return (
        f"Found for each line by {sweep.trials} trials on the validation split of seed {sweep.seed} ({sweep.metric}): {found}.{counted}"
    )


def tuned(line: Found) -> str:
    """The settings that a sweep has found for a line."""
    return ", ".join(assigned(name, value) for name, value in line["tuned"].settings.items())


def _flat(line: Found) -> Iterator[tuple[str, Any]]:
    yield from line["labels"].items()
    for row, values in line["rows"].items():
        for metric, over in values.items():
            yield from _columns(f"{row}.{metric}", over)
    for name in ("gain", "kept", "helped", "harmed", "against_bias", "unseen", "kb_up", "kb_down", "seconds"):
        yield from _columns(name, line[name])
    if saved := line["saved"]:
        yield from _columns("saved", _over(saved["means"]))
        yield from ((f"saved.{name}", saved[name]) for name in ("wins", "losses"))
    if line["paired"]:
        yield from ((f"paired.{name}", value) for name, value in asdict(line["paired"]).items())
    for kind in ("budgets", "epsilon"):
        yield from ((f"{kind.removesuffix('s')}.{name}", epsilon) for name, epsilon in line[kind].items())
    if line["tuned"]:
        yield from ((f"tuned.{name}", value) for name, value in line["tuned"].settings.items())
        yield "tuned.validation", line["tuned"].value
    yield "scenarios", " ".join(line["scenarios"])


def _columns(name: str, over: Over | None) -> Iterator[tuple[str, float]]:
    if over is not None:
        yield from ((name, over.mean), (f"{name}.low", over.low), (f"{name}.high", over.high))


def _mean(over: Over | None, form: str = ".4f") -> str:
    return "-" if over is None else format(over.mean, form)


def _spread(over: Over | None) -> str:
    return "-" if over is None else f"{over.mean:.4f} ({over.low:.4f} to {over.high:.4f})"

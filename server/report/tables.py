"""Tables for the terminal: a run's controls, rounds and users, and runs side by side."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from configs.errors import InputError
from server.report import controls
from server.report.files import Run, read, read_rounds, read_users, validations
from server.report.plots import unit
from server.report.summary import MAIN, plain, summary_of
from strategies import metrics

_NONE = "-"


def controls_table(summary: dict[str, Any]) -> Table:
    """The rows of a summary; the last column is the mean nll that ``shared + private`` saves against each row."""
    shares = [name for name in ("auc", "accuracy", "f1") if any(name in row for row in summary["rows"].values())]
    table = _table(f"{summary['users']} users, nll (lower is better)", "")
    for name in ("mean", "95% interval", "worst tenth", *shares, "saved by shared + private", "p"):
        table.add_column(name, justify="right")
    for name, row in summary["rows"].items():
        gain = summary["gains"].get(name)
        cells = [_number(row["mean"]), _span(row["ci95"]), _number(row["worst_decile"])]
        cells += [_number(row.get(share), 3) for share in shares]
        cells += [_saved(gain["mean"], gain["ci95"]), _number(gain["p"], 3)] if gain else [_NONE, _NONE]
        table.add_row(Text(controls.words(name)), *cells, style="bold" if name == MAIN else "")
    return table


def rounds_table(directory: str | Path) -> Table:
    """One line per round: users, releases dropped, loss, validation nll per row, kB per user, seconds."""
    rounds = read_rounds(directory)
    scored = dict(validations(rounds))
    rows = controls.ordered(name for scores in scored.values() for name in scores)
    table = _table(None, "round", justify="right")
    heads = [f"{controls.words(name)}, nll" for name in rows]
    for name in ("users", "dropped", "training loss", *heads, "kB up", "kB down", "seconds"):
        table.add_column(name, justify="right")
    for row in rounds:
        validation, users = scored.get(row["round"], {}), max(1, row["users"])
        table.add_row(
            str(row["round"]),
            str(row["users"]),
            str(sum(row.get("dropped", {}).values())),
            _number(row.get("train_loss")),
            *(_number(validation.get(name, {}).get("nll")) for name in rows),
            f"{row['bytes_up'] / users / 1e3:,.1f}",
            f"{row['bytes_down'] / users / 1e3:,.1f}",
            f"{sum(row.get('seconds', {}).values()):.1f}",
        )
    return table


def users_table(directory: str | Path, limit: int = 50) -> Table:
    """The first ``limit`` users (0: all): what they have, and their test nll per row."""
    users = read_users(directory)
    shown = users.names[:limit] if limit else users.names
    table = _table(f"{len(shown)} of {len(users.names)} users, nll", "user")
    for name in ("seen", "train", "test", *(controls.words(row) for row in users.values)):
        table.add_column(Text(name), justify="right")
    for at, user in enumerate(shown):
        counts = ("yes" if users.seen[at] else "no", _number(users.train[at], 0), _number(users.test[at], 0))
        losses = (_number(values["nll"][at]) for values in users.values.values())
        table.add_row(Text(user), *counts, *losses)
    return table


def compare_rows(directories: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One mapping per run, in the order given.

    ``run`` (the folder), ``name``, ``hash``, ``seed``, ``users``, ``rounds``, ``rows`` (row -> mean, ci95: as in the
    summary), ``helped``, ``harmed``, ``bytes_up`` and ``bytes_down`` (per user and round), ``seconds`` (all parts), and
    ``against_first``: row -> {users, mean, ci95, p}, this run's nll minus the first run's over the users that both
    trained on, negative is better. It is empty where two runs score different things: other data, or, for text,
    another model, whose tokens are not the same.
    """
    if not directories:
        raise InputError("name at least one run folder")
    runs = [read(directory) for directory in directories]
    gains = [{}, *(against(run, runs[0]) for run in runs[1:])]
    return [plain({**_column(run), "against_first": found}) for run, found in zip(runs, gains, strict=True)]


def compare_table(directories: Sequence[str | Path]) -> Table:
    """`compare_rows` as a table with a column per run; differences are shown as nats saved against the first run."""
    columns = compare_rows(directories)
    table = _table("nll, lower is better; saved: against the first run", "")
    for column in columns:
        table.add_column(Text(f"{column['name']}\n{column['hash']}"), justify="right")

    def line(name: str, cells: list[str], bold: bool = False) -> None:
        table.add_row(Text(name), *cells, style="bold" if bold else "")

    line("folder", [Path(column["run"]).name for column in columns])
    for key in ("seed", "users", "rounds"):
        line(key, [str(column[key]) for column in columns])
    table.add_section()
    for name in controls.ordered(name for column in columns for name in column["rows"]):
        line(controls.words(name), [_plus_minus(column["rows"].get(name)) for column in columns], name == MAIN)
    table.add_section()
    for name in controls.ordered(name for column in columns for name in column["against_first"]):
        gains = [column["against_first"].get(name) for column in columns]
        cells = [_saved(gain["mean"], gain["ci95"]) if gain else _NONE for gain in gains]
        line(f"saved, {controls.words(name)}", cells, name == MAIN)
    table.add_section()
    line("helped / harmed", [_pair(column["helped"], column["harmed"]) for column in columns])
    line("kB up per user, round", [f"{column['bytes_up'] / 1e3:,.1f}" for column in columns])
    line("kB down per user, round", [f"{column['bytes_down'] / 1e3:,.1f}" for column in columns])
    line("seconds", [f"{column['seconds']:,.0f}" for column in columns])
    return table


def _column(run: Run) -> dict[str, Any]:
    summary = summary_of(run)
    same = ("name", "seed", "users", "rounds", "rows", "helped", "harmed")
    return {
        "run": str(run.directory),
        "hash": summary["scenario_hash"],
        **{key: summary[key] for key in same},
        "bytes_up": summary["bytes_up_per_user_round"],
        "bytes_down": summary["bytes_down_per_user_round"],
        "seconds": sum(summary["seconds"].values()),
    }


def markdown_rows(head: Sequence[str], body: Iterable[Sequence[str]], words: int) -> list[str]:
    """A Markdown table's lines, of which the first ``words`` columns hold words and the others numbers."""
    rule = ["---"] * words + ["--:"] * (len(head) - words)
    return [f"| {' | '.join(row)} |" for row in (head, rule, *body)]


def against(run: Run, first: Run) -> dict[str, dict[str, Any]]:
    """Paired differences of every row that both runs have, over the seen users that both have."""
    table = {}
    for row in controls.ordered(name for name in run.users.values if name in first.users.values):
        found = differences(run, first, row, row)
        if found:
            gain = metrics.paired_gain(list(found.values()), np.zeros(len(found)))
            table[row] = {"users": gain.users, "mean": gain.mean, "ci95": gain.ci95, "p": gain.p}
    return table


def differences(run: Run, first: Run, new: str, old: str) -> dict[str, float]:
    """Nll of this run's row ``new`` minus that of the first run's row ``old``, for each seen user who has both; negative is better.

    It is empty where the two runs score different things, and what is below rounding is zero.
    """
    here, there = (_losses(run, new), _losses(first, old)) if _comparable(run, first) else ({}, {})
    common = [name for name in here if name in there]
    delta_U = metrics.differences([here[name] for name in common], [there[name] for name in common])
    return dict(zip(common, delta_U.tolist(), strict=True))


def _losses(run: Run, row: str) -> dict[str, float]:
    """The row's nll of each seen user who has one."""
    nll_U = run.users.values.get(row, {}).get("nll", np.full(len(run.users.names), np.nan))
    return {name: float(nll_U[at]) for at, name in enumerate(run.users.names) if run.users.seen[at] and not np.isnan(nll_U[at])}


def _comparable(run: Run, first: Run) -> bool:
    """Whether a user's nll means the same in both runs: the same test examples, and the same unit."""
    here, there = (dataclasses.replace(r.scenario.data, users=0, unseen_users=0) for r in (run, first))
    if here != there or unit(run.users) != unit(first.users):
        return False
    return unit(run.users) == "nats per choice" or run.scenario.model.name == first.scenario.model.name


def _table(title: str | None, first: str, justify: Any = "left") -> Table:
    table = Table(title=title, title_justify="left", title_style="", header_style="bold", box=None, pad_edge=False)
    table.add_column(first, justify=justify, no_wrap=True)
    return table


def _number(value: float | None, digits: int = 4) -> str:
    return _NONE if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _span(ci95: list[float | None]) -> str:
    return _NONE if _half(ci95) is None else f"{ci95[0]:.4f} to {ci95[1]:.4f}"


def _half(ci95: list[float | None]) -> float | None:
    low, high = ci95
    return None if low is None or high is None or math.isnan(low) else (high - low) / 2


def _plus_minus(row: dict[str, Any] | None) -> str:
    if row is None:
        return _NONE
    half = _half(row["ci95"])
    return _number(row["mean"]) + (f" ±{half:.4f}" if half is not None else "")


def _saved(mean: float | None, ci95: list[float | None]) -> str:
    """A gain turned so that positive is better."""
    if mean is None or math.isnan(mean):
        return _NONE
    half = _half(ci95)
    return f"{-mean:+z.4f}" + (f" ±{half:.4f}" if half is not None else "")


def _pair(helped: int | None, harmed: int | None) -> str:
    return _NONE if helped is None else f"{helped} / {harmed}"

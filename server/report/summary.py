"""`summary.json`: the numbers of a run under names that stay as they are."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from configs.scenario import scenario_hash
from server.report.files import Run, Users, read, write_text
from server.report.promise import spent
from strategies import metrics

MAIN = "shared_private"  # the row that every other is held against
_SHARES = ("auc", "accuracy", "f1")  # higher is better; beside the nll where a task has them


def summarize(directory: str | Path) -> dict[str, Any]:
    """The summary of a finished run's folder: means over users, gains paired over users, costs.

    ``rows`` and ``gains`` are over seen users. A loss is in nats (per token, or per choice); a gain is
    ``shared_private`` minus the other row, so negative is better, except for ``auc``. A number that is not finite, and
    an interval over one user, is None; so are ``helped`` and ``harmed`` where one of the two rows is absent.
    """
    return summary_of(read(directory))


def write_summary(directory: str | Path) -> Path:
    """Write `summary.json` into the run's folder, whole or not at all."""
    text = json.dumps(summarize(directory), indent=1, allow_nan=False)
    return write_text(Path(directory) / "summary.json", text + "\n")


def summary_of(run: Run) -> dict[str, Any]:
    """`summarize` for a folder that is already read."""
    seen_U = run.users.seen
    turns = sum(row["users"] for row in run.rounds)  # a user taking part in one round
    against_shared = _gain(run.users, "shared", "nll", seen_U)
    summary = {
        "name": run.scenario.name,
        "scenario_hash": scenario_hash(run.scenario),
        "seed": run.scenario.seed,
        "users": int(seen_U.sum()),
        "rounds": len(run.rounds),
        "metric": "nll",
        "higher_is_better": False,
        "rows": rows(run.users, seen_U),
        "gains": _gains(run.users, seen_U),
        "helped": against_shared.helped if against_shared else None,
        "harmed": against_shared.harmed if against_shared else None,
        "bytes_up_per_user_round": sum(row["bytes_up"] for row in run.rounds) / turns if turns else 0.0,
        "bytes_down_per_user_round": sum(row["bytes_down"] for row in run.rounds) / turns if turns else 0.0,
        "seconds": run.timing["seconds"],
        "tokens_per_second": run.timing.get("tokens_per_second"),
        "epsilon": spent(run.scenario, run.directory),
        "dropped": sum(sum(row.get("dropped", {}).values()) for row in run.rounds),
    }
    if not seen_U.all():
        summary["unseen"] = {"users": int((~seen_U).sum()), "rows": rows(run.users, ~seen_U)}
    return plain(summary)


def rows(users: Users, chosen_U: np.ndarray) -> dict[str, dict[str, Any]]:
    """Mean, 95% interval and worst decile of the nll, and means of the shares, per row over the chosen users.

    A row, and a share, that none of these users has is left out; a mean is over the users that have a value.
    """
    table = {}
    for row, values in users.values.items():
        found = {metric: _defined(values_U[chosen_U]) for metric, values_U in values.items()}
        if found["nll"].size:
            table[row] = {
                "mean": metrics.mean(found["nll"]),
                "ci95": metrics.ci95(found["nll"]),
                "worst_decile": metrics.worst_decile(found["nll"]),
                **{name: metrics.mean(found[name]) for name in _SHARES if name in found and found[name].size},
            }
    return table


def paired(users: Users, new: str, old: str, metric: str = "nll") -> np.ndarray:
    """Which users have a value in both rows (bool per user); nobody when a row is absent."""
    both_U = np.ones(len(users.names), bool)
    for row in (new, old):
        values_U = users.values.get(row, {}).get(metric)
        both_U &= np.zeros_like(both_U) if values_U is None else ~np.isnan(values_U)
    return both_U


def _gains(users: Users, chosen_U: np.ndarray) -> dict[str, dict[str, Any]]:
    table = {}
    for row in users.values:
        gain = _gain(users, row, "nll", chosen_U) if row != MAIN else None
        if gain:
            table[row] = {"mean": gain.mean, "ci95": gain.ci95, "p": gain.p}
            ranking = _gain(users, row, "auc", chosen_U)
            if ranking:
                table[row]["auc"] = {"mean": ranking.mean, "ci95": ranking.ci95}
    return table


def _gain(users: Users, row: str, metric: str, chosen_U: np.ndarray) -> metrics.Gain | None:
    """`MAIN` minus the row over the chosen users that have both, None when there are none."""
    both_U = chosen_U & paired(users, MAIN, row, metric)
    if not both_U.any():
        return None
    new_U, old_U = (users.values[name][metric][both_U] for name in (MAIN, row))
    return metrics.paired_gain(new_U, old_U, higher_is_better=metric != "nll")


def _defined(values_U: np.ndarray) -> np.ndarray:
    return values_U[~np.isnan(values_U)]


def plain(value: Any) -> Any:
    """The same tree of mappings and lists with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

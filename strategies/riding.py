"""Scores that ride with a round's training: each user is scored before it with the adapter that has come, and sums leave, no rows.

Of a row and a metric, ``row.metric`` is its sum over users and ``row.metric.users`` how many of them have it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

ROWS = ("shared", "shared_private", "local_only")  # that are followed from round to round
METRICS = ("nll", "accuracy", "f1", "auc")  # see `client.controls`
USERS = ".users"
SUMS = tuple(f"{row}.{metric}{end}" for row in ROWS for metric in METRICS for end in ("", USERS))


def sums(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Add up the rows of an evaluation; what a user has no number of is not counted."""
    found: dict[str, float] = {}
    for row in rows:
        for name in (name for name in SUMS if row.get(name) is not None):
            found[name] = found.get(name, 0.0) + row[name]
            found[name + USERS] = found.get(name + USERS, 0.0) + 1
    return found


def means(sums: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Row -> metric -> mean over users, of what was summed."""
    found: dict[str, dict[str, float]] = {}
    for row in ROWS:
        for metric in METRICS:
            if (users := sums.get(f"{row}.{metric}{USERS}", 0.0)) > 0:
                found.setdefault(row, {})[metric] = sums.get(f"{row}.{metric}", 0.0) / users
    return found

"""Lines held against the first one user by user: Wilcoxon's signed-rank test, corrected for the number of lines by Holm.

The unit is the user, not a user in a seed: what a user's loss differs by is averaged over the seeds in which the user stands, and each
user then counts once. The same user under two seeds is not two independent ones, and a test that counted both would be too sure.
What the p says is about users like these under these seeds; seeds vary beside it, and the table shows their spread.

Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979): among the lines of a study
the chance of any false difference stays at the level, whatever depends on what.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.scenario import Scenario
from server.report.files import Run
from server.report.summary import MAIN
from server.report.tables import differences
from strategies import metrics, schemes
from strategies.base import personal


@dataclass(frozen=True)
class Paired:
    """One line against the first, over users; U users that both have in any seed."""

    users: int
    median: float  # of what a user saves, nats; positive is better than the first line
    better: float  # share of users who are better off
    worse: float  # share of users who are worse off; the rest do not differ
    p: float  # two-sided, of this line alone
    holm: float  # the same, corrected for all lines that were tested


def own_row(scenario: Scenario) -> str:
    """The row of what a user ends up with: the shared adapter and the user's own, or the one of both that the scheme has."""
    scheme = schemes.of(scenario)
    return (MAIN if "shared" in scheme.blocks else "local_only") if personal(scheme) else "shared"


def paired(lines: Sequence[Sequence[Run]]) -> list[Paired | None]:
    """Each line's runs, one per seed, against the first line's. None for the first, and where there is nobody to compare or a loss
    is not finite. The order of the other lines changes nothing.
    """
    deltas = [[*averaged(line, lines[0]).values()] if at else [] for at, line in enumerate(lines)]
    gains = [metrics.paired_gain(delta, np.zeros(len(delta))) if delta and np.isfinite(delta).all() else None for delta in deltas]
    corrected = iter(holm([gain.p for gain in gains if gain]))
    return [
        gain
        and Paired(gain.users, -statistics.median(delta), gain.helped / gain.users, gain.harmed / gain.users, gain.p, next(corrected))
        for gain, delta in zip(gains, deltas, strict=True)
    ]


def averaged(line: Sequence[Run], first: Sequence[Run]) -> Mapping[str, float]:
    """What each user's loss differs by from the first line's, averaged over the seeds that have the user; negative is better."""
    found: dict[str, list[float]] = {}
    for run, other in zip(line, first, strict=True):
        for user, delta in differences(run, other, own_row(run.scenario), own_row(other.scenario)).items():
            found.setdefault(user, []).append(delta)
    return {user: metrics.mean(deltas) for user, deltas in found.items()}


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p-values in the order given: the i-th smallest of m times m - i + 1, never below a smaller one's, at most 1."""
    corrected, least = [0.0] * len(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = corrected[at] = max(least, min(1.0, (len(p) - rank) * p[at]))
    return corrected

"""What a life has come to: how much was learnt, kept and lost. Pure numpy.

Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, arXiv 1706.08840, section 2 (BWT, FWT); Chaudhry
et al., "Riemannian Walk for Incremental Learning", ECCV 2018, arXiv 1801.10112, eq. 3 (forgetting). With a[t, j] a user's score on
period j after training up to period t, higher is better, a[0, j] before any training, and T periods:

    AP          mean_j a[T, j]
    forgetting  mean_{j < T} ( max_{1 <= t < T} a[t, j] - a[T, j] )
    BWT         mean_{j < T} ( a[T, j] - a[j, j] )
    FWT         mean_{j > 1} ( a[j-1, j] - a[0, j] )

Each is worked out for every user, over the periods in which that user has a score, and then averaged over users, who count alike.
Of a loss the last three have the sign that they would have of a score: forgetting above zero is bad, BWT and FWT above zero are good.

S = T + 1 moments, T periods, U users.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies import metrics

Scores = NDArray[np.float64]

DEFINITIONS = {
    "ap": "mean over periods j of a[T, j]",
    "forgetting": "mean over periods j < T of max over 1 <= t < T of a[t, j], minus a[T, j]",
    "bwt": "mean over periods j < T of a[T, j] - a[j, j]",
    "fwt": "mean over periods j > 1 of a[j-1, j] - a[0, j], with a[0, j] before any training",
}


class Measures(NamedTuple):
    """One number for each user; NaN where a user has no score that it needs."""

    ap_U: Scores
    forgetting_U: Scores
    bwt_U: Scores
    fwt_U: Scores


def measures(a_STU: Scores, higher_is_better: bool) -> Measures:
    """Measures of each user from scores [T + 1, T, U], the untrained first; NaN: the user has nothing to test on in a period."""
    a_STU = a_STU if higher_is_better else -a_STU
    last_TU, diagonal_TU = a_STU[-1], np.stack([row_TU[j] for j, row_TU in enumerate(a_STU[1:])])
    best_TU, before_TU = a_STU[1:-1].max(0), np.stack([row_TU[j] for j, row_TU in enumerate(a_STU[:-1])])
    return Measures(
        _mean(last_TU) * (1.0 if higher_is_better else -1.0),
        _mean((best_TU - last_TU)[:-1]),
        _mean((last_TU - diagonal_TU)[:-1]),
        _mean((before_TU - a_STU[0])[1:]),
    )


def over_users(values_U: Scores, higher_is_better: bool) -> dict[str, float | None]:
    """Mean over the users that have a number, and mean over the worst tenth of these."""
    known_U = values_U[~np.isnan(values_U)]
    if not known_U.size:
        return {"mean": None, "worst_decile": None}
    return {"mean": metrics.mean(known_U), "worst_decile": metrics.worst_decile(known_U, higher_is_better)}


def average(a_TU: Scores) -> list[float | None]:
    """Mean over users of each period's scores; None where nobody has one."""
    return [None if np.isnan(value) else float(value) for value in _mean(a_TU.T)]


def _mean(values_NU: Scores) -> Scores:
    """Mean over the first axis without NaN; NaN where nothing is left."""
    known_NU = ~np.isnan(values_NU)
    count_U = known_NU.sum(0)
    return np.where(count_U > 0, np.where(known_NU, values_NU, 0.0).sum(0) / np.maximum(count_U, 1), np.nan)

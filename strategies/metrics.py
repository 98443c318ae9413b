"""Numbers per user, and numbers over users. Pure numpy.

N examples of one user, U users. A loss is in nats, lower is better; accuracy, F1 and AUC are shares, higher is better.
Users count alike, whatever the number of their examples: an interval is over users, never over examples.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # loads its statistics at their first use: most commands never come to it
from numpy.typing import ArrayLike

TIE = 1e-9  # a user whose difference is smaller is neither helped nor harmed
EXACT = 50  # users up to which the signed-rank test is exact; above, its normal approximation


@dataclass(frozen=True)
class Gain:
    """One row of a comparison minus another, paired over users; for a loss a negative mean is better."""

    users: int
    mean: float
    ci95: list[float]  # [low, high] of the mean
    p: float  # two-sided Wilcoxon signed-rank test; 1 when nobody differs
    helped: int
    harmed: int


def nll(logp_N: ArrayLike, tokens: int | None = None) -> float:
    """Negative log-likelihood in nats per token.

    ``logp_N``: log-probabilities of what the user really wrote or chose. ``tokens``: what to divide by; by default the
    number of entries, which is right for one entry per token and for one entry per choice.
    """
    logp_N = np.asarray(logp_N, float)
    return float(-logp_N.sum() / (logp_N.size if tokens is None else tokens))


def accuracy(predicted_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Share of examples whose predicted label is the true one."""
    return float(np.mean(np.asarray(predicted_N) == np.asarray(truth_N)))


def macro_f1(predicted_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Unweighted mean of the F1 of every label that is predicted or true; a label never got right counts 0."""
    predicted_N, truth_N = np.asarray(predicted_N), np.asarray(truth_N)
    scores = []
    for label in np.union1d(predicted_N, truth_N):
        hits = np.sum((predicted_N == label) & (truth_N == label))
        scores.append(2 * hits / (np.sum(predicted_N == label) + np.sum(truth_N == label)))
    return float(np.mean(scores))


def auc(score_N: ArrayLike, positive_N: ArrayLike) -> float | None:
    """Chance that a positive example scores above a negative one, a tie counting one half.

    None when one of the two classes is missing. It looks at the order of the scores only.
    """
    positive_N = np.asarray(positive_N, bool)
    positives = int(positive_N.sum())
    negatives = positive_N.size - positives
    if positives == 0 or negatives == 0:
        return None
    ranks_N = scipy.stats.rankdata(np.asarray(score_N, float))
    return float((ranks_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def mean(values_U: ArrayLike) -> float:
    """Mean over users; not finite as soon as one user's value is not."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(np.asarray(values_U, float)))


def ci95(values_U: ArrayLike) -> list[float]:
    """``[low, high]``: the 95% interval of the mean over users (Student t).

    Both are NaN for fewer than two users, and when a value is not finite.
    """
    values_U = np.asarray(values_U, float)
    if values_U.size < 2 or not np.isfinite(values_U).all():
        return [math.nan, math.nan]
    half = scipy.stats.t.ppf(0.975, values_U.size - 1) * values_U.std(ddof=1) / math.sqrt(values_U.size)
    return [float(values_U.mean() - half), float(values_U.mean() + half)]


def worst_decile(values_U: ArrayLike, higher_is_better: bool = False) -> float:
    """Mean over the worst tenth of users, rounded down but at least one user."""
    values_U = np.sort(np.asarray(values_U, float))
    worst_U = values_U if higher_is_better else values_U[::-1]
    return mean(worst_U[: max(1, values_U.size // 10)])


def differences(new_U: ArrayLike, old_U: ArrayLike) -> np.ndarray:
    """``new - old`` per user, with what is below rounding (`TIE`) set to exactly zero."""
    with np.errstate(invalid="ignore"):
        delta_U = np.asarray(new_U, float) - np.asarray(old_U, float)
    return np.where(np.abs(delta_U) <= TIE, 0.0, delta_U)


def paired_gain(new_U: ArrayLike, old_U: ArrayLike, higher_is_better: bool = False) -> Gain:
    """Compare two rows over the same users, user by user."""
    delta_U = differences(new_U, old_U)
    up, down = int(np.sum(delta_U > 0)), int(np.sum(delta_U < 0))
    helped, harmed = (up, down) if higher_is_better else (down, up)
    return Gain(delta_U.size, mean(delta_U), ci95(delta_U), _wilcoxon(delta_U), helped, harmed)


def _wilcoxon(delta_U: np.ndarray) -> float:
    """Two-sided p; users without a difference are left out. Exact up to `EXACT` users, ties included.

    SciPy's own exact p with ties draws or lists all sign patterns, which takes seconds at a dozen users.
    """
    if np.isnan(delta_U).any():
        return math.nan
    delta_U = delta_U[delta_U != 0]
    if delta_U.size > EXACT:
        result: Any = scipy.stats.wilcoxon(delta_U, method="asymptotic")
        return float(result.pvalue)
    doubled_U = np.rint(2 * scipy.stats.rankdata(np.round(np.abs(delta_U), 9))).astype(int)  # mean ranks end in .0 or .5
    chance = np.ones(1)  # chance[s]: that the doubled ranks of the positive differences add up to s
    for rank in doubled_U:
        chance = (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0))) / 2
    distance = np.abs(2 * np.arange(chance.size) - doubled_U.sum())
    return float(chance[distance >= distance[doubled_U[delta_U > 0].sum()]].sum())

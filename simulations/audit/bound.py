"""A lower bound of epsilon from how well canaries are told from their absence: pure statistics.

Steinke, Nasr & Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, arXiv 2305.08846, theorem 5.2. Each of m canaries
is in by a fair coin of its own. Whoever sees the output makes r guesses and abstains from the rest. If the whole is (epsilon, delta)-DP
in each canary, then for the number V of right guesses

    P[V >= v]  <=  f(v) + 2 m delta max_{1 <= i <= v} (f(v - i) - f(v)) / i,    f(v) = P[Binomial(r, e^epsilon / (1 + e^epsilon)) >= v]

Nothing is assumed about how the canaries' outputs hang together: one training with all of them, or a training for each, where the
trials are independent. Guesses are ranks: the r/2 highest scores are "in", the r/2 lowest "out", so that r is fixed beforehand.
Deviations: -f(v) is left out, which makes the right side larger, and rising in epsilon; several r are tried, and each one's share of
the error is equal (Bonferroni), so that the bound holds over the choice.

Shape suffix: M canaries.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtrc

Floats = NDArray[np.float64]

CONFIDENCE = 0.95  # in the bound: it is above the truth in at most one audit of twenty
FEWEST = 16  # guesses of the smallest choice of r; with fewer, all right says little
LARGEST = 50.0  # epsilon beyond which nothing is told apart


def bound(score_M: Floats, coin_M: NDArray[np.bool_], delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest epsilon that the guesses refute at this delta and confidence; 0 where they refute none.

    ``score_M`` is higher for canaries that seem to be in; ties are broken by position. ``coin_M`` says which were.
    """
    order = np.argsort(score_M, kind="stable")
    sides = [(order[: r // 2], order[len(order) - r // 2 :]) for r in choices(len(order))]
    right = [int((~coin_M[low]).sum() + coin_M[high].sum()) for low, high in sides]
    return _best(len(order), right, delta, confidence)


def most(canaries: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The bound where every guess is right: no claim above it can be refuted with so many canaries."""
    return _best(canaries, choices(canaries), delta, confidence)


def choices(canaries: int) -> list[int]:
    """The numbers of guesses r that are tried, all even: every canary, half of them, a quarter, ..."""
    return [r for k in range(canaries.bit_length()) if (r := canaries // 2**k // 2 * 2) >= FEWEST]


def p_value(epsilon: float, canaries: int, guesses: int, right: int, delta: float) -> float:
    """The theorem's right side: how probable so many right guesses are at most, if all is (epsilon, delta)-DP."""
    rate, i_V = 1 / (1 + math.exp(-epsilon)), np.arange(1, right + 1)
    broken = np.max(bdtrc(right - i_V - 1, guesses, rate) / i_V, initial=0.0)
    return float(bdtrc(right - 1, guesses, rate) + 2 * canaries * delta * broken)


def _best(canaries: int, right: list[int], delta: float, confidence: float) -> float:
    tried = choices(canaries)
    error = (1 - confidence) / max(len(tried), 1)
    return max((_refuted(canaries, r, v, delta, error) for r, v in zip(tried, right, strict=True)), default=0.0)


def _refuted(canaries: int, guesses: int, right: int, delta: float, error: float) -> float:
    """Where the p-value, which rises with epsilon, passes ``error``; from below."""
    if p_value(0.0, canaries, guesses, right, delta) > error:
        return 0.0
    root = float(brentq(lambda e: p_value(e, canaries, guesses, right, delta) - error, 0.0, LARGEST, xtol=1e-9))  # pyright: ignore[reportArgumentType]
    return max(root - 1e-8, 0.0)

"""What (epsilon, delta) says to somebody who asks whether they were there, in numbers that are not epsilon.

With P what comes out with the unit in the data and Q what comes out without it:

    P[event] <= e^epsilon Q[event] + delta,  and the other way round

Kairouz, Oh & Viswanath, "The Composition Theorem for Differential Privacy", ICML 2015, arXiv 1311.0776, theorem 2.1: the tests that
this leaves have miss rate + e^epsilon false rate >= 1 - delta, and false rate + e^epsilon miss rate >= 1 - delta. Groups of k: Dwork &
Roth, "The Algorithmic Foundations of Differential Privacy", theorem 2.2, with the delta of k steps, delta (e^(k epsilon) - 1) /
(e^epsilon - 1).
"""

import math

LARGEST = 700.0  # beyond it e^epsilon is no float


def odds(epsilon: float) -> float:
    """By which factor any event's probability changes at most, but for delta."""
    return math.exp(epsilon) if epsilon < LARGEST else math.inf


def largest_auc(epsilon: float, delta: float) -> float:
    """The largest area under the curve of any test of membership: 0.5 at (0, 0), 1 where nothing is promised.

    >>> largest_auc(0.0, 0.0), round(largest_auc(1.0, 0.0), 4)
    (0.5, 0.7311)
    """
    false = (1 - delta) / (1 + odds(epsilon))  # where both bounds meet: false rate and miss rate alike
    right = 1 - false
    return (delta + right) / 2 * false + (right + 1) / 2 * (1 - delta - false) + delta


def group(epsilon: float, delta: float, units: int) -> tuple[float, float]:
    """What holds for so many units together: another (epsilon, delta); delta is 1 where nothing holds.

    >>> group(1.0, 0.0, 3), group(0.5, 1e-6, 1)
    ((3.0, 0.0), (0.5, 1e-06))
    """
    if units * epsilon >= LARGEST:
        return units * epsilon, 1.0 if delta else 0.0
    times = math.expm1(units * epsilon) / math.expm1(epsilon) if epsilon else float(units)
    return units * epsilon, min(delta * times, 1.0)

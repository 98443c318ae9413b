"""What Gaussian noise costs where everybody takes part: exactly, in closed form.

Dong, Roth & Su, "Gaussian Differential Privacy", arXiv 1905.02383, corollary 3.3: steps with noises z_i compose to *one* Gaussian
mechanism, with no central limit in it,

    mu^2 = sum_i 1 / z_i^2

and Balle & Wang, "Improving the Gaussian Mechanism for Differential Privacy", arXiv 1805.06530, theorem 8:

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)

Both ways of inverting it err on the side of more privacy: epsilon is rounded up, mu down. N: any number of histories.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

Floats = NDArray[np.float64]

ROUNDING = 16 * np.finfo(np.float64).eps  # of one log_ndtr, relative
MARGIN = 1e-12  # of the answer, relative
HALVINGS = 54
LARGEST = 1e100  # a mu that counts as no noise


def log_delta(epsilon_N: Floats, mu_N: Floats) -> Floats:
    """Logarithm of delta(epsilon), never below it: the two terms' distance is widened by what rounding may have taken from it."""
    first_N = log_ndtr(mu_N / 2 - epsilon_N / mu_N)
    gap_N = first_N - epsilon_N - log_ndtr(-mu_N / 2 - epsilon_N / mu_N)
    return first_N + np.log(-np.expm1(-np.maximum(gap_N, 0.0) - ROUNDING * (1 + epsilon_N - first_N)))


def epsilon_for(mu_N: Floats, delta: float) -> Floats:
    """The smallest epsilon of each mu: 0 for no cost, inf for no noise. That of zCDP, mu^2/2 + mu sqrt(2 log 1/delta), is above it."""
    known_N = (mu_N > 0) & (mu_N < LARGEST)
    safe_N = np.where(known_N, mu_N, 1.0)
    above_N = safe_N**2 / 2 + safe_N * np.sqrt(-2 * np.log(delta))
    _, found_N = _halved(lambda x_N: log_delta(x_N, safe_N) <= np.log(delta), above_N)
    found_N = np.where(log_delta(np.zeros_like(safe_N), safe_N) <= np.log(delta), 0.0, found_N * (1 + MARGIN))
    return np.where(known_N, found_N, np.where(mu_N > 0, np.inf, 0.0))


def mu_for(epsilon: float, delta: float) -> float:
    """The largest mu that stays within (epsilon, delta). At mu/2 - epsilon/mu = 10, delta is 1 to every digit: there it is above."""
    above = np.array([10 + (100 + 2 * epsilon) ** 0.5])
    low_N, _ = _halved(lambda mu_N: log_delta(np.full(1, epsilon), mu_N) > np.log(delta), above)
    return float(low_N[0]) * (1 - MARGIN)


def _halved(beyond: Callable[[Floats], NDArray[np.bool_]], high_N: Floats) -> tuple[Floats, Floats]:
    """Bracket where ``beyond`` turns true between 0 and ``high_N``, by halving."""
    low_N = np.zeros_like(high_N)
    for _ in range(HALVINGS):
        middle_N = (low_N + high_N) / 2
        is_N = beyond(middle_N)
        low_N, high_N = np.where(is_N, low_N, middle_N), np.where(is_N, middle_N, high_N)
    return low_N, high_N

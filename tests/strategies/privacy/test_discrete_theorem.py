"""The theorem behind distributed noise, held against sums of discrete Gaussians that are worked out exactly."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logsumexp

from configs.errors import InputError
from strategies.privacy import discrete
from strategies.privacy.accounting import epsilon
from strategies.privacy.discrete import Grid, event, fit, unknown_noises

Floats = NDArray[np.float64]
CASES = [(1, 2), (1, 3), (1, 12), (2, 5), (3, 4)]  # standard deviation of one noise, noises


def pmf(sigma: float, wide: int) -> Floats:
    """The discrete Gaussian over -wide ... wide."""
    y = np.arange(-wide, wide + 1)
    weights = np.exp(-(y**2) / (2 * sigma**2))
    return weights / weights.sum()


def summed(sigma: int, count: int, wide: int) -> Floats:
    """The sum of so many, over -wide ... wide; a convolution without a Fourier transform keeps every tail's digits."""
    total = one = pmf(sigma, 38 * sigma)
    for _ in range(count - 1):
        total = np.convolve(total, one)
    centre = len(total) // 2
    return total[centre - wide : centre + wide + 1]


def grid_of(sigma: int, count: int, shifts: Sequence[int]) -> Grid:
    """A grid that accounts for this shift and no larger one."""

    class Given(Grid):
        @property
        def reach(self) -> int:
            return sum(shift**2 for shift in shifts)

    return Given(1.0, len(shifts), count, 2**32, noise=sigma, honest=count)


def pair(sigma: int, count: int, shift: int) -> tuple[Floats, Floats]:
    """The sum moved by ``shift``, and as it is, on one range."""
    wide = 24 + 7 * math.ceil(sigma * math.sqrt(count))
    whole = summed(sigma, count, wide + shift)
    return whole[: 2 * wide + 1], whole[shift : shift + 2 * wide + 1]


@pytest.mark.parametrize(("sigma", "count"), [(1, 2), (1, 3), (1, 12)])
def test_a_sum_is_within_half_of_tau_of_one_discrete_gaussian_and_two_are_not_within_much_less(sigma: int, count: int) -> None:
    wide = 6 * math.ceil(sigma * math.sqrt(count))
    single = pmf(sigma * math.sqrt(count), 38 * sigma * count)
    centre = len(single) // 2
    ratio = np.abs(np.log(summed(sigma, count, wide) / single[centre - wide : centre + wide + 1])).max()
    assert ratio <= discrete.inflation(sigma, count) / 2
    assert count > 2 or ratio > 0.15 * discrete.inflation(sigma, count)


@pytest.mark.parametrize("alpha", [1.001, 1.1, 2.0, 8.0])
@pytest.mark.parametrize("shifts", [(1,), (3,), (1, 1), (2, 0, 1)])
@pytest.mark.parametrize(("sigma", "count"), CASES)
def test_no_exact_divergence_is_above_the_accounted_one(sigma: int, count: int, shifts: tuple[int, ...], alpha: float) -> None:
    exact = 0.0
    for shift in shifts:  # numbers are noised independently: divergences add up
        p, q = pair(sigma, count, shift)
        exact += float(np.asarray(logsumexp(alpha * np.log(p) + (1 - alpha) * np.log(q)))) / (alpha - 1)
    accounted = alpha / (2 * event(grid_of(sigma, count, shifts)).noise ** 2)
    assert exact <= accounted * (1 + 1e-9) + 1e-11
    assert exact > 0.9 * alpha * sum(s * s for s in shifts) / (2 * count * sigma**2), "and not by much"


@pytest.mark.parametrize("delta", [1e-3, 1e-6])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize(("sigma", "count"), CASES)
def test_no_exact_delta_is_above_the_one_that_was_asked_for(sigma: int, count: int, shift: int, delta: float) -> None:
    p, q = pair(sigma, count, shift)
    claimed = epsilon([event(grid_of(sigma, count, (shift,)))], delta)
    assert np.maximum(p - math.exp(claimed) * q, 0).sum() <= delta
    assert np.maximum(p - math.exp(0.55 * claimed) * q, 0).sum() > delta, "a much smaller epsilon would not hold"


def test_a_grids_event_is_never_cheaper_than_the_noise_that_was_asked_for() -> None:
    for noise in (0.3, 1.0, 1.7, 10.0):
        for honest in (1, 3, 10):
            for modulus in (2**20, 2**32):
                assert event(fit(1.0, 40, 10, noise, honest, modulus)).noise >= noise


def test_an_accounting_counts_on_no_noise_of_those_who_may_collude() -> None:
    assert unknown_noises(7, 0) == 7
    assert unknown_noises(7, 3) == 4
    for colluding in (7, 8):
        with pytest.raises(InputError, match="hides nothing"):
            unknown_noises(7, colluding)

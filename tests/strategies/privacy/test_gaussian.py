"""The closed form against numerical integrals of its definition: on the safe side of them, and no further than rounding needs."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from strategies.privacy.gaussian import epsilon_for, mu_for

MU = (0.01, 0.1, 1.0, 3.0, 10.0)
DELTA = (1e-10, 1e-5, 0.05)


def integrated(epsilon: float, mu: float) -> float:
    """delta(epsilon): the integral of max(0, p - e^epsilon q) for p = N(mu, 1), q = N(0, 1)."""
    start = epsilon / mu + mu / 2  # where p = e^epsilon q

    def excess(x: float) -> float:
        return -float(norm.pdf(x - mu)) * math.expm1(epsilon - mu * x + mu**2 / 2)

    return quad(excess, start, max(start, mu) + 12, epsabs=0, epsrel=1e-10, limit=200)[0]


@pytest.mark.parametrize("mu", MU)
@pytest.mark.parametrize("delta", DELTA)
def test_epsilon_is_the_smallest_that_holds(mu: float, delta: float) -> None:
    found = float(epsilon_for(np.array([mu]), delta)[0])
    assert integrated(found, mu) <= delta * (1 + 1e-9)
    assert found == 0 or integrated(found * (1 - 1e-4), mu) > delta


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 8.0, 100.0])
@pytest.mark.parametrize("delta", DELTA)
def test_mu_is_the_largest_that_holds(epsilon: float, delta: float) -> None:
    found = mu_for(epsilon, delta)
    assert integrated(epsilon, found) <= delta * (1 + 1e-9)
    assert integrated(epsilon, found * (1 + 1e-4)) > delta


@pytest.mark.parametrize("epsilon", [1e-6, 0.01, 1.0, 50.0, 1e4, 1e8])
@pytest.mark.parametrize("delta", DELTA)
def test_what_mu_allows_costs_no_more_than_was_asked_for(epsilon: float, delta: float) -> None:
    back = float(epsilon_for(np.array([mu_for(epsilon, delta) * (1 - 1e-9)]), delta)[0])
    assert epsilon * (1 - 1e-6) - 1e-6 <= back <= epsilon


def test_epsilon_rises_with_mu_from_no_cost_to_no_noise() -> None:
    mu_N = np.array([0.0, 1e-300, 1e-9, 1e-3, 1.0, 40.0, 1e4, 1e8, 1e20, 1e90, 1e100, np.inf])
    found_N = epsilon_for(mu_N, 1e-6)
    assert not np.isnan(found_N).any()
    assert (np.diff(found_N[:-1]) >= 0).all()
    assert found_N[0] == 0
    assert found_N[-1] == np.inf
    assert (found_N[4:10] >= mu_N[4:10] ** 2 / 2).all()  # delta < 1/2 there


def test_many_are_what_each_is_alone() -> None:
    mu_N = np.linspace(0, 20, 50)
    alone = [float(epsilon_for(np.array([mu]), 1e-5)[0]) for mu in mu_N]
    assert epsilon_for(mu_N, 1e-5).tolist() == alone

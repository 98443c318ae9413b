"""A bound for thousands at once is never below the truth, and settles exactly what the accountant would have said."""

from collections.abc import Sequence

import numpy as np
import pytest
from opacus.accountants.analysis.rdp import compute_rdp

from strategies.privacy import bounds
from strategies.privacy.accounting import epsilon, epsilons
from strategies.privacy.events import Event

DELTA = 1e-5
HISTORIES = (
    (Event(1.0, 200, 0.05, "poisson"),),
    (Event(1.0, 200, 0.05, "poisson"), Event(2.0, 40, 0.1, "poisson"), Event(3.0, 4)),
    (Event(0.6, 3, 0.9, "poisson"),),
    (Event(30.0, 50, 0.3, "poisson"), Event(20.0, 3)),
)


@pytest.mark.parametrize("history", HISTORIES)
def test_a_bound_is_never_below_the_truth_and_near_it(history: tuple[Event, ...]) -> None:
    (rough,) = bounds.bounds([history], DELTA)
    assert epsilon(history, DELTA) <= rough
    assert epsilon(history, DELTA, "rdp") * 0.999 <= rough <= epsilon(history, DELTA, "rdp") * 1.15


@pytest.mark.parametrize(("noise", "rate"), [(0.7, 0.01), (2.0, 0.3), (8.0, 0.9)])
def test_the_curve_is_that_of_opacus_at_whole_orders(noise: float, rate: float) -> None:
    (curve_A,) = bounds._curves(np.array([noise]), np.array([rate]))
    theirs = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=[float(a) for a in bounds.ORDERS])
    assert curve_A == pytest.approx(theirs, rel=1e-6, abs=1e-12)


def test_users_are_kept_apart() -> None:
    together = bounds.bounds(HISTORIES, DELTA)
    assert together == pytest.approx([bounds.bounds([h], DELTA)[0] for h in HISTORIES])


def test_who_is_within_is_what_the_accountant_says_on_both_sides_of_every_budget() -> None:
    odd = (
        (),
        (Event(0.0, 1),),
        (Event(0.0, 1, 0.5, "poisson"),),
        (Event(4.0, 5, 0.1, "fixed"),),
        (Event(5.0, 8, kind="concentrated"),),
    )
    every = (*HISTORIES, *odd)
    truth = epsilons(every, DELTA)
    for value in [t for t in truth if 0 < t < np.inf]:
        for budget in (value * 0.999, value * 1.001, value * 1.3):
            assert bounds.within(every, budget, DELTA) == [t <= budget for t in truth]


def test_only_those_that_the_bound_leaves_open_are_accounted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[tuple[Event, ...]]] = []
    monkeypatch.setattr(bounds, "epsilons", lambda histories, *_: asked.append(histories) or epsilons(histories, DELTA))
    near = epsilon(HISTORIES[0], DELTA) * 1.001  # its own bound is above it
    assert bounds.within(HISTORIES, near, DELTA)[0]
    assert asked == [[h for h in HISTORIES if bounds.bounds([h], DELTA)[0] > near]]
    assert HISTORIES[0] in asked[0] and HISTORIES[3] not in asked[0]

"""Measures of a life are what their formulas say, of scores and of losses."""

import numpy as np
import pytest

from strategies.lifelong import average, measures, over_users

NAN = np.nan
# rows: untrained, after periods 1, 2, 3; columns: periods
ONE = np.array([[0.1, 0.2, 0.3], [0.9, 0.3, 0.2], [0.6, 0.8, 0.5], [0.5, 0.7, 0.9]])


def test_by_hand() -> None:
    found = measures(ONE[:, :, None], True)
    assert found.ap_U == pytest.approx([0.7])
    assert found.forgetting_U == pytest.approx([((0.9 - 0.5) + (0.8 - 0.7)) / 2])
    assert found.bwt_U == pytest.approx([((0.5 - 0.9) + (0.7 - 0.8)) / 2])
    assert found.fwt_U == pytest.approx([((0.3 - 0.2) + (0.5 - 0.3)) / 2])


def test_the_last_period_is_not_forgotten_yet_and_the_untrained_model_is_not_a_best() -> None:
    worse = ONE.copy()
    worse[0], worse[1:, 2] = 9.0, [9.0, 9.0, 0.0]
    assert measures(worse[:, :, None], True).forgetting_U == pytest.approx([0.25])


def test_of_a_loss_only_ap_changes_its_sign() -> None:
    scores, losses = measures(ONE[:, :, None], True), measures(-ONE[:, :, None], False)
    assert losses.ap_U == pytest.approx(-scores.ap_U)
    for name in ("forgetting_U", "bwt_U", "fwt_U"):
        assert getattr(losses, name) == pytest.approx(getattr(scores, name))


def test_a_user_counts_by_the_periods_they_have() -> None:
    both = np.stack([ONE, np.where(np.arange(3) == 1, NAN, ONE)], 2)
    found = measures(both, True)
    assert found.ap_U == pytest.approx([0.7, 0.7]) and found.forgetting_U == pytest.approx([0.25, 0.4])
    assert average(both[-1]) == pytest.approx([0.5, 0.7, 0.9]) and average(np.full((1, 2), NAN)) == [None]
    assert over_users(np.array([1.0, 3.0, NAN]), False) == {"mean": 2.0, "worst_decile": 3.0}
    assert over_users(np.array([NAN]), False)["mean"] is None

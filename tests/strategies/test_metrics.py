"""Metrics against closed forms, brute force, and the identities that must hold for any input."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from strategies import metrics

unhurried = settings(deadline=None)  # the machine may be busy
scored = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=30)
losses = st.lists(st.floats(0, 10), min_size=1, max_size=40)


def brute_auc(scores, positive):
    pairs = [(s, t) for s, p in zip(scores, positive, strict=True) if p
             for t, q in zip(scores, positive, strict=True) if not q]  # fmt: skip
    return sum((s > t) + 0.5 * (s == t) for s, t in pairs) / len(pairs) if pairs else None


def test_nll_of_a_fair_coin_is_log_two():
    assert metrics.nll(np.log([0.5, 0.5, 0.5])) == pytest.approx(math.log(2))


def test_nll_is_divided_by_the_tokens_given():
    assert metrics.nll([-3.0, -1.0], tokens=8) == pytest.approx(0.5)


def test_accuracy_is_the_share_of_equal_labels():
    assert metrics.accuracy(["a", "b", "b", "c"], ["a", "b", "a", "c"]) == 0.75


def test_macro_f1_by_hand():
    # a: precision 1, recall 1/2; b: precision 1/2, recall 1; c is predicted and never true.
    assert metrics.macro_f1(["a", "b", "b", "c"], ["a", "a", "b", "b"]) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_macro_f1_counts_a_label_that_is_never_predicted():
    assert metrics.macro_f1([1, 1], [1, 0]) == pytest.approx((2 / 3 + 0) / 2)


@unhurried
@given(scored)
def test_auc_equals_counting_all_pairs(examples):
    scores, positive = zip(*examples, strict=True)
    expected = brute_auc(scores, positive)
    found = metrics.auc(scores, positive)
    assert found is None if expected is None else found == pytest.approx(expected, abs=1e-12)


@unhurried
@given(scored)
def test_auc_sees_only_the_order_of_scores(examples):
    scores, positive = map(np.array, zip(*examples, strict=True))
    assert metrics.auc(np.exp(scores) * 3 + 7, positive) == metrics.auc(scores, positive)


@unhurried
@given(scored)
def test_auc_turns_round_when_labels_flip(examples):
    scores, positive = map(np.array, zip(*examples, strict=True))
    found, flipped = metrics.auc(scores, positive), metrics.auc(scores, ~positive)
    assert (found is None) == (flipped is None)
    assert found is None or flipped is None or found == pytest.approx(1 - flipped, abs=1e-12)


@unhurried
@given(st.integers(1, 9), st.integers(1, 9))
def test_auc_of_equal_scores_is_one_half(positives, negatives):
    assert metrics.auc([0.3] * (positives + negatives), [True] * positives + [False] * negatives) == 0.5


@pytest.mark.parametrize("label", [True, False])
def test_auc_is_undefined_with_one_class(label):
    assert metrics.auc([0.1, 0.2], [label, label]) is None


def test_interval_by_hand_with_two_degrees_of_freedom():
    half = 4.302652729911275 * 1 / math.sqrt(3)  # t quantile of the tables; 1, 2, 3 have a standard deviation of 1
    assert metrics.ci95([1.0, 2.0, 3.0]) == pytest.approx([2 - half, 2 + half])


def test_interval_covers_the_mean_nineteen_times_in_twenty():
    samples = np.random.default_rng(0).normal(3, 2, (4000, 5))
    low, high = np.array([metrics.ci95(row) for row in samples]).T
    assert np.mean((low < 3) & (high > 3)) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("values", [[1.0], [1.0, math.inf, 2.0], [math.nan, 1.0]])
def test_interval_is_undefined_for_one_user_or_a_diverged_one(values):
    assert all(math.isnan(end) for end in metrics.ci95(values))


@pytest.mark.parametrize(("users", "taken"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (50, 5)])
def test_worst_decile_takes_a_tenth_and_at_least_one(users, taken):
    values = np.random.default_rng(1).permutation(users).astype(float)
    assert metrics.worst_decile(values) == pytest.approx(np.mean(range(users - taken, users)))
    assert metrics.worst_decile(values, higher_is_better=True) == pytest.approx(np.mean(range(taken)))


@unhurried
@given(losses)
def test_worst_decile_is_never_better_than_the_mean(values):
    assert metrics.worst_decile(values) >= metrics.mean(values) - 1e-9
    assert metrics.worst_decile(values, higher_is_better=True) <= metrics.mean(values) + 1e-9


def test_paired_gain_by_hand():
    gain = metrics.paired_gain([0.5, 0.7, 0.4], [0.6, 0.6, 0.6])
    assert (gain.users, gain.helped, gain.harmed) == (3, 2, 1)
    assert gain.mean == pytest.approx(-0.2 / 3)
    assert gain.ci95 == pytest.approx(metrics.ci95([-0.1, 0.1, -0.2]))


def test_helped_turns_round_when_higher_is_better():
    gain = metrics.paired_gain([0.5, 0.7, 0.4], [0.6, 0.6, 0.6], higher_is_better=True)
    assert (gain.helped, gain.harmed) == (1, 2)


def test_rounding_is_neither_help_nor_harm():
    gain = metrics.paired_gain([0.1 + 0.2, 1.0, 1.0], [0.3, 1.0 + 5e-10, 1.0 - 2e-9])
    assert (gain.helped, gain.harmed) == (0, 1)


def test_nobody_differing_gives_p_one():
    assert metrics.paired_gain([0.1, 0.2], [0.1, 0.2]).p == 1.0


@unhurried
@given(st.lists(st.integers(-5, 5).filter(bool), min_size=1, max_size=9))
def test_wilcoxon_equals_all_sign_flips(tied):
    delta = np.array(tied) / 10
    ranks = stats.rankdata(np.abs(tied))
    flips = [ranks @ np.array(signs) for signs in itertools.product([-1, 1], repeat=delta.size)]
    expected = np.mean(np.abs(flips) >= abs(ranks @ np.sign(delta)) - 1e-9)
    assert metrics.paired_gain(delta + 0.7, np.full(delta.size, 0.7)).p == pytest.approx(expected)


@pytest.mark.parametrize("users", [3, 20, 50, 51, 400])
def test_wilcoxon_equals_scipy_without_ties(users):
    delta = np.random.default_rng(users).normal(0.1, 1, users)
    expected: Any = stats.wilcoxon(delta, method="exact" if users <= 50 else "asymptotic")
    assert metrics.paired_gain(delta, np.zeros(users)).p == pytest.approx(expected.pvalue)


def test_wilcoxon_leaves_out_users_without_a_difference():
    delta = np.array([0.11, -0.02, 0.37, 0.05])
    padded = np.append(delta, np.zeros(60))
    assert metrics.paired_gain(padded, 0 * padded).p == pytest.approx(metrics.paired_gain(delta, 0 * delta).p)


def test_the_test_is_two_sided():
    new, old = [0.1, 0.5, 0.2, 0.4, 0.9], [0.3, 0.2, 0.6, 0.9, 1.5]
    assert metrics.paired_gain(new, old).p == pytest.approx(metrics.paired_gain(old, new).p)


def test_a_diverged_user_is_harmed_and_makes_the_mean_not_finite():
    gain = metrics.paired_gain([math.inf, 0.1, 0.2], [0.5, 0.2, 0.4])
    assert (gain.helped, gain.harmed) == (2, 1)
    assert not math.isfinite(gain.mean)
    assert math.isnan(gain.ci95[0])


def test_a_user_that_diverged_in_both_rows_is_neither():
    gain = metrics.paired_gain([math.inf, 0.1], [math.inf, 0.2])
    assert (gain.helped, gain.harmed) == (1, 0)
    assert math.isnan(gain.mean)
    assert math.isnan(gain.p)

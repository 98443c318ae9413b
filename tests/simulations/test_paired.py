"""Lines are held against the first over users, each of whom counts once, and corrected for their number."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from configs.scenario import load
from server.report.files import Run, Users
from simulations.compare.paired import averaged, holm, own_row, paired

P = st.lists(st.floats(0, 1), max_size=8)


def run(losses: dict[str, float], scheme: str = "dual", unseen: str = "") -> Run:
    """A run in which each user has one loss."""
    row = own_row(load("movielens", [f"scheme={scheme}"]))
    names, count = tuple(losses), np.ones(len(losses))
    users = Users(names, np.array([name != unseen for name in names]), count, count, {row: {"nll": np.array([*losses.values()])}})
    return Run(Path("nowhere"), load("movielens", [f"scheme={scheme}"]), [], users, {})


def line(*seeds: list[float]) -> list[Run]:
    """A line's runs, one for each seed, of users u0, u1, ..."""
    return [run({f"u{at}": loss for at, loss in enumerate(losses)}) for losses in seeds]


FIRST = line([1.0 + 0.1 * at for at in range(12)], [2.0 - 0.1 * at for at in range(12)])
BETTER = line([0.99 + 0.09 * at for at in range(12)], [1.99 - 0.11 * at for at in range(12)])


def test_equal_lines_do_not_differ() -> None:
    same = paired([FIRST, list(FIRST)])[1]
    assert same and (same.p, same.holm, same.median, same.better, same.worse) == (1.0, 1.0, 0.0, 0.0, 0.0)


def test_a_line_that_is_better_for_every_user_is_told_from_chance() -> None:
    none, found = paired([FIRST, BETTER])
    assert none is None and found and found.better == 1.0 and found.worse == 0.0
    assert found.p == pytest.approx(2 / 2**12), "the smallest p that twelve users can give, whatever the number of seeds"
    assert found.median == pytest.approx(0.065)
    worse = paired([BETTER, FIRST])[1]
    assert worse and worse.p == found.p and worse.worse == 1.0 and worse.median == pytest.approx(-0.065)


def test_the_unit_is_the_user() -> None:
    once, thrice = paired([FIRST[:1], BETTER[:1]])[1], paired([FIRST[:1] * 3, BETTER[:1] * 3])[1]
    assert once and thrice and once.users == thrice.users == 12
    assert (once.p, once.median) == (thrice.p, pytest.approx(thrice.median)), "seeds that repeat each other add no evidence"


def test_a_user_counts_with_the_mean_over_the_seeds_that_have_them() -> None:
    first = [run({"a": 1.0, "b": 1.0, "c": 5.0}, unseen="c"), run({"a": 1.0, "d": 1.0})]
    other = [run({"a": 0.5, "b": 1.5, "c": 0.0}), run({"a": 1.1, "d": 0.0, "e": 0.0})]
    assert averaged(other, first) == pytest.approx({"a": -0.2, "b": 0.5, "d": -1.0})


def test_p_is_scipys() -> None:
    draw = np.random.default_rng(0)
    for count in (9, 80):
        there, here = draw.normal(3, 1, (2, count)), draw.normal(2.8, 1, (2, count))
        found = paired([line(*there.tolist()), line(*here.tolist())])[1]
        expected = stats.wilcoxon((here - there).mean(0), method="exact" if count == 9 else "asymptotic")
        assert found and found.p == pytest.approx(expected.pvalue)  # type: ignore[attr-defined]


def test_the_order_of_lines_changes_nothing() -> None:
    draw = np.random.default_rng(1)
    others = [line(*(draw.normal(1.4 + shift, 0.3, (2, 12))).tolist()) for shift in (0.0, 0.2, 0.4)]
    straight, turned = paired([FIRST, *others]), paired([FIRST, *others[::-1]])
    assert straight[1:] == turned[:0:-1] and len({test.holm for test in straight if test}) > 1


def test_a_line_without_anything_private_is_held_against_with_what_its_users_have() -> None:
    shared = [run({"a": 1.5, "b": 1.5}, "shared_only")]
    found = paired([[run({"a": 1.0, "b": 1.0})], shared])[1]
    assert found and found.users == 2 and found.median == -0.5
    rows = {scheme: own_row(load("movielens", [f"scheme={scheme}"])) for scheme in ("local_only", "shared_only", "fedsa", "dual")}
    assert rows == {"local_only": "local_only", "shared_only": "shared", "fedsa": "shared_private", "dual": "shared_private"}


def test_what_cannot_be_compared_is_not_tested_and_counts_for_no_correction() -> None:
    lost = line([np.inf] * 12, [np.inf] * 12)
    nobody = [run({"z": 1.0}), run({"z": 1.0})]
    found = paired([FIRST, lost, BETTER, nobody])
    assert found[1] is None and found[3] is None and found[2] and found[2].p == found[2].holm


@given(P)
@settings(max_examples=60, deadline=None)
def test_holm_is_monotone_and_never_below_the_p_nor_above_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    for raw, other in zip(p, corrected, strict=True):
        assert raw <= other <= min(1.0, len(p) * raw)
    ordered = [corrected[at] for at in sorted(range(len(p)), key=p.__getitem__)]
    assert ordered == sorted(ordered)
    assert sorted(holm(p[::-1])) == sorted(corrected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.7, 0.8]) == [1.0, 1.0]

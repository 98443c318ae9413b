"""A bad release is dropped and counted; good ones pass untouched and in order."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch

from server.admission import admitted, refusal
from strategies.base import Release
from strategies.tree import State

SHARED: State = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


def good(value: float = 1.0, weight: float = 2.0) -> Release:
    """In order."""
    return Release({n: torch.full_like(v, value * weight) for n, v in SHARED.items()}, weight, 1, {"tokens": 3.0})


def with_(name: str, value: torch.Tensor) -> Release:
    """A good release with one tensor replaced or added."""
    return Release({**good().update, name: value}, 2.0, 1, {})


BAD: dict[str, tuple[Callable[[], Release], str]] = {
    "nan": (lambda: with_("a", torch.full((2, 3), torch.nan)), "not finite"),
    "infinite": (lambda: with_("b", torch.tensor([1.0, 2.0, torch.inf, 0.0])), "not finite"),
    "unknown name": (lambda: with_("c", torch.zeros(1)), "unknown tensor"),
    "wrong shape": (lambda: with_("a", torch.zeros(3, 2)), "wrong shape"),
    "wrong number of axes": (lambda: with_("b", torch.zeros(1, 4)), "wrong shape"),
    "float64": (lambda: with_("a", torch.zeros(2, 3, dtype=torch.float64)), "wrong dtype"),
    "integers": (lambda: with_("a", torch.zeros(2, 3, dtype=torch.int64)), "wrong dtype"),
    "absurd norm": (lambda: good(1e6), "norm too large"),
    "norm hidden by a small weight": (lambda: Release(good(1.0).update, 1e-9, 1, {}), "norm too large"),
    "negative weight": (lambda: good(weight=-1.0), "bad weight"),
    "weight nan": (lambda: Release(good().update, float("nan"), 1, {}), "bad weight"),
    "infinite weight": (lambda: Release(good().update, float("inf"), 1, {}), "bad weight"),
    "an update without weight": (lambda: Release(good().update, 0.0, 1, {}), "bad weight"),
}


@pytest.mark.parametrize(("make", "reason"), BAD.values(), ids=BAD)
def test_a_bad_release_is_dropped_and_counted_by_its_reason(make: Callable[[], Release], reason: str) -> None:
    dropped: Counter[str] = Counter()
    given = [good(1.0), make(), good(2.0)]
    assert list(admitted(given, SHARED, 100.0, dropped)) == [given[0], given[2]]
    assert dropped == {reason: 1}


@pytest.mark.parametrize("field", ["users", "metrics"])
def test_counts_and_metrics_that_are_no_numbers_are_refused_too(field: str) -> None:
    base = good()
    bad = (
        Release(base.update, base.weight, -3, {}) if field == "users" else Release(base.update, base.weight, 1, {"loss": float("nan")})
    )
    assert refusal(bad, SHARED, 100.0) == "bad count"


def test_releases_of_a_round_name_the_same_tensors() -> None:
    dropped: Counter[str] = Counter()
    half = Release({"a": torch.ones(2, 3)}, 1.0, 1, {})
    assert len(list(admitted([good(), half, good()], SHARED, 100.0, dropped))) == 2
    assert dropped == {"other tensors than the first release": 1}


def test_a_release_of_nothing_is_in_order_and_sets_no_names() -> None:
    dropped: Counter[str] = Counter()
    empty = Release({}, 0.0, 1, {})
    assert len(list(admitted([empty, good(), empty], SHARED, 100.0, dropped))) == 3
    assert not dropped


def test_a_dropped_sum_counts_all_of_its_users() -> None:
    dropped: Counter[str] = Counter()
    list(admitted([Release({"c": torch.zeros(1)}, 9.0, 40, {})], SHARED, 100.0, dropped))
    assert dropped == {"unknown tensor": 40}


def test_the_norm_is_that_of_the_mean_update_at_the_bound() -> None:
    at = Release({"b": torch.tensor([30.0, 40.0, 0.0, 0.0])}, 10.0, 1, {})  # a mean update of norm 5
    assert refusal(at, SHARED, 5.001) is None
    assert refusal(at, SHARED, 4.999) == "norm too large"


def test_admission_is_lazy() -> None:
    def stream() -> Iterator[Release]:
        yield good()
        raise AssertionError("read ahead")

    assert next(admitted(stream(), SHARED, 100.0, Counter())).weight == 2.0

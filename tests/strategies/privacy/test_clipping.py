"""A clipped update is within its bound whatever came in, and the price of the adaptive bound's bits is in the noise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import InputError
from strategies.privacy.clipping import clip, joint, next_bound, split, unclipped
from strategies.tree import State, norm

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
SEARCH = settings(max_examples=150, deadline=None, derandomize=True)


def update(seed: int, size: float = 1.0, dtype: torch.dtype = torch.float32) -> State:
    """Two tensors."""
    draw = torch.Generator().manual_seed(seed)
    return {n: (size * torch.randn(s, generator=draw)).to(dtype) for n, s in (("a", (3, 70)), ("b", (101,)))}


@SEARCH
@given(a=st.lists(FLOAT32, min_size=1, max_size=9), b=st.lists(FLOAT32, max_size=9), bound=st.floats(1e-44, 1e38))
def test_the_norm_of_the_result_is_at_most_the_bound_for_all_float32(a: list[float], b: list[float], bound: float) -> None:
    given_ = {"a": torch.tensor(a), "b": torch.tensor(b)}
    clipped, before = clip(given_, bound)
    assert norm(clipped) <= bound
    assert before == norm(given_)
    assert {n: (v.shape, v.dtype) for n, v in clipped.items()} == {n: (v.shape, v.dtype) for n, v in given_.items()}
    if before <= bound:
        assert all(torch.equal(clipped[n], v) for n, v in given_.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_also_at_most_the_bound_over_many_draws_and_not_much_less(dtype: torch.dtype) -> None:
    for seed in range(200):
        bound = 0.1 * (1 + seed / 7)
        found = norm(clip(update(seed, 3.0, dtype), bound)[0])
        assert bound * (1 - max(2 * torch.finfo(dtype).eps, 1e-12)) <= found <= bound


def test_clipping_keeps_the_direction_over_all_tensors_jointly_and_its_input() -> None:
    before, same = update(0), update(0)
    clipped = clip(before, 0.5)[0]
    for name, value in before.items():
        assert torch.equal(value, same[name])
        torch.testing.assert_close(clipped[name], value * 0.5 / norm(before))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_zeros_in_all_tensors(bad: float) -> None:
    poisoned = update(0)
    poisoned["b"][7] = bad
    clipped, before = clip(poisoned, 1.0)
    assert all(not value.any() for value in clipped.values())
    assert not math.isfinite(before)
    assert not unclipped(before, 1.0)
    assert norm(clip({"a": torch.full((4,), 1e300, dtype=torch.float64)}, 1.0)[0]) <= 1.0


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(InputError, match="clip bound"):
        clip(update(0), bound)


def test_zeros_and_nothing_stay_what_they_are() -> None:
    assert clip({}, 1.0) == ({}, 0.0)
    assert not clip({"a": torch.zeros(3)}, 1.0)[0]["a"].any()
    assert unclipped(1.0, 1.0)
    assert not unclipped(1.0 + 1e-9, 1.0)


def test_the_bound_rises_where_too_few_are_within_it_and_rests_at_the_quantile() -> None:
    assert next_bound(2.0, 0.7, 0.7, 0.2) == 2.0
    assert next_bound(2.0, 0.2, 0.7, 0.2) == pytest.approx(2.0 * math.exp(0.1))
    assert next_bound(2.0, 1.0, 0.7, 0.2) == pytest.approx(2.0 * math.exp(-0.06))


@SEARCH
@given(z=st.floats(0.01, 20), more=st.floats(1.001, 1000))
def test_updates_and_bits_cost_together_what_the_whole_noise_does(z: float, more: float) -> None:
    bit_noise = z / 2 * more
    share = split(z, bit_noise)
    assert share >= z
    assert z**-2 == pytest.approx(share**-2 + (2 * bit_noise) ** -2, rel=1e-9)
    assert joint(share, bit_noise) == pytest.approx(z, rel=1e-9)


def test_bits_that_cost_more_than_there_is_are_refused() -> None:
    for bit_noise in (0.5, 0.4, 0.0):
        with pytest.raises(InputError, match="bit_noise"):
            split(1.0, bit_noise)
    assert split(0.0, 0.5) == 0.0

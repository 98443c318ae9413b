"""States are flat dictionaries; operations on them change no input."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.tree import State, add, generator, lead, nbytes, norm, partition, stack, subtract, take, weighted_mean


def state(seed: int) -> State:
    """Two tensors."""
    draw = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(2, 3, generator=draw), "b": torch.randn(4, generator=draw)}


def equal(x: State, y: State) -> bool:
    """Names and bits."""
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)


def test_partition_splits_by_name_and_loses_nothing() -> None:
    kept, rest = partition(state(0), lambda name: name == "a")
    assert (list(kept), list(rest)) == (["a"], ["b"])
    assert equal({**kept, **rest}, state(0))


def test_take_undoes_stack_and_gives_a_copy() -> None:
    stacked = stack([state(0), state(1)])
    assert equal(take(stacked, 1), state(1))
    take(stacked, 1)["a"].zero_()
    assert equal(take(stacked, 1), state(1))


def test_lead_gives_an_axis_of_one() -> None:
    assert {n: v.shape for n, v in lead(state(0)).items()} == {"a": (1, 2, 3), "b": (1, 4)}


def test_add_undoes_subtract_and_leaves_missing_names_and_inputs_alone() -> None:
    x, y = state(0), state(1)
    before = copy.deepcopy((x, y))
    back = add(y, subtract(x, y))
    assert all(torch.allclose(back[n], x[n], atol=1e-6) for n in x)
    assert torch.equal(add(x, {"a": y["a"]})["b"], x["b"])
    assert torch.equal(add(x, y, 2.0)["a"], x["a"] + 2 * y["a"])
    assert equal(before[0], x)
    assert equal(before[1], y)


def test_add_keeps_the_dtype_of_the_left() -> None:
    assert add({"a": torch.zeros(2, dtype=torch.bfloat16)}, {"a": torch.ones(2)})["a"].dtype == torch.bfloat16


def test_norm_is_that_of_the_joint_vector_and_bytes_are_counted() -> None:
    found = {"a": torch.tensor([[3.0]]), "b": torch.tensor([4.0, 0.0])}
    assert norm(found) == pytest.approx(5.0)
    assert nbytes(found) == 12
    assert norm({}) == 0.0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(weights=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=6), scale=st.floats(1e-3, 1e3))
def test_a_weighted_mean_is_the_plain_formula_whatever_the_scale_of_weights(weights: list[float], scale: float) -> None:
    states = [state(i) for i in range(len(weights))]
    found = weighted_mean((w * scale, {n: v * w * scale for n, v in s.items()}) for w, s in zip(weights, states, strict=True))
    want = torch.stack([w * s["a"].double() for w, s in zip(weights, states, strict=True)]).sum(0) / sum(weights)
    torch.testing.assert_close(found["a"], want.float(), atol=1e-5, rtol=1e-5)
    assert found["a"].dtype == torch.float32


def test_a_mean_over_nothing_is_empty() -> None:
    assert weighted_mean([]) == {}
    assert weighted_mean([(0.0, state(0))]) == {}


def test_a_generator_depends_on_all_of_its_key_and_on_nothing_else() -> None:
    def draw(*key: object) -> float:
        return float(torch.rand((), generator=generator(*key)))

    assert draw(0, 1, "ann", "order") == draw(0, 1, "ann", "order")
    keys = [(0, 1, "ann", "order"), (1, 1, "ann", "order"), (0, 2, "ann", "order"), (0, 1, "bob", "order"), (0, 1, "ann", "noise"),
            (0, -1), (0, -2), (0, "1"), (0, 1), ("01",), ()]  # fmt: skip
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(7, "x") == pytest.approx(0.38279, abs=1e-5), "another machine must draw the same"

"""What is pressed once is pressed to itself, travels without the loss of a bit, and errs by no more than its file says."""

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from configs.errors import InputError
from configs.scenario import Scenario, load, scenario_hash
from configs.wire import Wire
from strategies import compressors, fit, packing
from strategies.compressors import bf16, fp16, int8, topk
from strategies.packing import Packed
from strategies.privacy import rules
from strategies.tree import State, generator, norm

KINDS = ("bf16", "fp16", "int8", "topk")
FORMS = {"bf16": torch.int16, "fp16": torch.float16, "int8": torch.int8, "topk": torch.float32}
SOME = torch.randn(40, 50, generator=generator("some")) * 1e-3


def pressed(value: Tensor, kind: str, seed: int = 0) -> Tensor:
    """As a node presses it."""
    wire = Wire(kind=kind, keep=0.05)  # type: ignore[arg-type]
    sent, _ = compressors.user({"x": value}, {}, wire)
    return compressors.message(sent, wire, generator(seed))["x"]


def same(a: Tensor, b: Tensor) -> bool:
    """Shape and every bit."""
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


def there_and_back(value: Tensor) -> Tensor:
    like = {"x": torch.zeros_like(value)}
    return packing.unpack(packing.pack({"x": value}, like), like)["x"]


NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 2.0**-126, 127.0, 128.0, 3.4e38, 65504.0, math.inf])
VALUES = st.lists(NUMBERS, max_size=12).map(lambda x: torch.tensor(x, dtype=torch.float32))


@settings(deadline=None, max_examples=150)
@given(VALUES, st.sampled_from(KINDS))
@example(torch.tensor([1.9999, 3 * 2.0**-38]), "fp16")  # the largest is rounded up to the next power of two
@example(torch.tensor([127.0, -127.0, 0.3]), "int8")
def test_what_is_pressed_is_pressed_to_itself_and_comes_back_to_the_last_bit(value: Tensor, kind: str) -> None:
    once = pressed(value, kind)
    assert same(pressed(once, kind, seed=1), once)
    assert same(there_and_back(once), once)
    for pack, unpack in ((bf16.pack, bf16.unpack), (fp16.pack, fp16.unpack), (int8.pack, int8.unpack)):
        if form := pack(once):
            assert same(unpack(*(x for x in form if x is not None)), once)
    assert same(topk.unpack(*topk.pack(once), once.shape), once)


@settings(deadline=None, max_examples=100)
@given(VALUES)
@example(torch.tensor([1 + 2.0**-8]))  # the highest bit that bfloat16 lacks
def test_what_nobody_pressed_travels_without_the_loss_of_a_bit(value: Tensor) -> None:
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pressed_tensor_has_the_form_of_its_kind_and_its_size(kind: str) -> None:
    value = pressed(SOME, kind)
    packed = packing.pack({"x": value}, {"x": SOME})
    assert packed.values["x"].dtype == FORMS[kind] and same(packing.unpack(packed, {"x": SOME})["x"], value)
    count = SOME.numel()
    assert packed.nbytes() == {"bf16": 2 * count, "fp16": 2 * count + 2, "int8": count + 8, "topk": 6 * count // 20}[kind]
    assert packing.pack({"x": SOME}).nbytes() == 4 * count
    if kind == "topk":  # a reader that lacks the shape gets all of it
        assert packing.pack({"x": value}).nbytes() == 4 * count


def test_places_that_lie_far_apart_have_zeros_between_them() -> None:
    value = torch.zeros(3 * topk.FAR)
    for at in (0, topk.FAR, topk.FAR + 1, 3 * topk.FAR - 1):
        value[at] = 1.0
        assert same(there_and_back(value), value)
    assert len(topk.pack(value)[0]) == 5


def test_roundings_err_by_no_more_than_they_say() -> None:
    assert float(((bf16.press(SOME) - SOME).abs() / SOME.abs()).max()) <= 2**-8
    wide = 1.2345 * 2.0 ** -torch.arange(29.0)
    assert float(((fp16.press(wide) - wide).abs() / wide).max()) <= 2**-11
    assert norm({"": fp16.press(SOME * 1e-30) - SOME * 1e-30}) <= 2**-11 * norm({"": SOME * 1e-30})
    largest = int8._blocks(SOME).abs().amax(1, keepdim=True).expand(-1, int8.BLOCK).flatten()[: SOME.numel()]
    assert bool(((pressed(SOME, "int8") - SOME).abs().flatten() < largest * 2 / 127).all())


def test_a_step_is_the_least_power_of_two_of_which_127_reach_the_largest_number() -> None:
    for largest, exponent in ((127.0, 0), (127.0001, 1), (126.9, 0), (63.5, -1), (1.0, -6), (0.0, int8.LEAST)):
        assert int8._steps(int8._blocks(torch.tensor([0.0, -largest]))).tolist() == [exponent]


def test_eight_bits_are_the_number_in_the_mean_over_coins() -> None:
    value, draws = SOME.flatten()[:256], 4000
    mean = torch.stack([int8.press(value, generator("coins", n)).double() for n in range(draws)]).mean(0)
    step = float(value.abs().max()) * 2 / 127
    assert float((mean - value).abs().max()) < 5 * step / 2 / draws**0.5
    assert float((mean - value).abs().max()) > 0


def test_the_largest_numbers_of_each_tensor_are_sent_and_nothing_else() -> None:
    found = topk.press(SOME, 0.05)
    sent = found != 0
    assert int(sent.sum()) == 100 and torch.equal(found[sent], SOME[sent])
    assert float(SOME.abs()[sent].min()) >= float(SOME.abs()[~sent].max())
    assert int((topk.press(SOME, 1e-9) != 0).sum()) == 1 and topk.press(SOME, 1.0) is SOME


def test_what_is_left_out_is_sent_later_and_nothing_is_lost() -> None:
    memory: State = {"other": torch.ones(2)}
    updates = [{"x": torch.randn(30, generator=generator(n))} for n in range(50)]
    total = torch.zeros(30)
    for update in updates:
        sent, memory = topk.remembering(update, memory, 0.1)
        assert int((sent["x"] != 0).sum()) == 3
        total += sent["x"]
    assert torch.allclose(total + memory["x"], torch.stack([u["x"] for u in updates]).sum(0), atol=1e-4)
    assert torch.equal(memory["other"], torch.ones(2))


@pytest.mark.parametrize("feedback", [True, False])
def test_with_memory_a_descent_ends_where_it_should_and_without_it_does_not(feedback: bool) -> None:
    """Two users pull a large number of theirs apart and agree about a small one (Karimireddy et al., section 3)."""
    at, memory = torch.zeros(2), [dict[str, Tensor]() for _ in range(2)]
    for _ in range(400):
        moves = []
        for k, sign in enumerate((1.0, -1.0)):
            gradient = torch.stack([at[0] + sign * 10, at[1] - 1])
            sent, memory[k] = compressors.user({"x": -0.05 * gradient}, memory[k], Wire(kind="topk", keep=0.5, feedback=feedback))
            moves.append(sent["x"])
        at = at + torch.stack(moves).mean(0)
    assert (abs(float(at[1]) - 1) < 0.2) == feedback


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_stays_so_and_spoils_no_memory(kind: str, bad: float) -> None:
    value = SOME.clone()
    value[3, 4] = bad
    assert not bool(there_and_back(pressed(value, kind)).isfinite().all())
    before = {"x": torch.ones(40, 50)}
    assert topk.remembering({"x": value}, before, 0.1)[1] is before


def test_coins_are_the_seeds_and_do_not_depend_on_the_order_of_tensors() -> None:
    update = {"b": SOME, "a": SOME * 2}
    one, other = (compressors.message(u, Wire(kind="int8"), generator(1)) for u in (update, dict(reversed(update.items()))))
    assert all(same(one[n], other[n]) for n in update)
    assert not same(one["b"], compressors.message(update, Wire(kind="int8"), generator(2))["b"])


# ---------------------------------------------------------------------- what no packer writes
def i16(*x: int) -> Tensor:
    return torch.tensor(x, dtype=torch.int16)


WRONG: dict[str, tuple[Tensor, Tensor | None]] = {
    "float16 alone": (torch.zeros(4, dtype=torch.float16), None),
    "float16 with a scale too large": (torch.zeros(4, dtype=torch.float16), torch.tensor(129, dtype=torch.int16)),
    "float16 with two scales": (torch.zeros(4, dtype=torch.float16), i16(1, 1)),
    "8 bits alone": (torch.zeros(4, dtype=torch.int8), None),
    "8 bits with a step too many": (torch.zeros(4, dtype=torch.int8), torch.zeros(2, dtype=torch.int8)),
    "8 bits with steps of another type": (torch.zeros(4, dtype=torch.int8), i16(0)),
    "8 bits with a step out of range": (torch.zeros(4, dtype=torch.int8), torch.tensor([127], dtype=torch.int8)),
    "bfloat16 with something beside": (torch.zeros(4, dtype=torch.int16), i16(0)),
    "a place beyond the tensor": (torch.ones(1), i16(-(2**15) + 4)),
    "places that add up beyond it": (torch.ones(3), i16(-(2**15), -(2**15) + 1, -(2**15) + 1)),
    "more places than numbers": (torch.ones(1), i16(-(2**15), -(2**15))),
    "numbers in a table": (torch.ones(1, 1), torch.full((1, 1), -(2**15), dtype=torch.int16)),
    "places of another type": (torch.ones(1), torch.zeros(1, dtype=torch.int8)),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_no_packer_writes_is_refused(what: str) -> None:
    value, more = WRONG[what]
    with pytest.raises(ValueError):
        packing.unpack(Packed({"x": value}, {} if more is None else {"x": more}), {"x": torch.zeros(4)})


def test_few_numbers_of_an_unknown_tensor_or_something_beside_none_are_refused() -> None:
    values, beside = packing.pack({"x": topk.press(SOME, 0.01)}, {"x": SOME})
    for wrong in (Packed({"y": values["x"]}, {"y": beside["x"]}), Packed({}, beside)):
        with pytest.raises(ValueError):
            packing.unpack(wrong, {"x": SOME})


# ---------------------------------------------------------------------- what a scenario may ask for
U = ("privacy=user", "weights=uniform")
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "secure": (("wire.kind=topk", "privacy.secure=true", "weights=uniform", "max_release_norm=1"), "has no part in a sum"),
    "U bf16": ((*U, "wire.kind=bf16"), "wire.kind=bf16 rounds what a node sends after its users were clipped"),
    "U int8": ((*U, "wire.kind=int8"), "use wire.kind=topk, which comes before the clip"),
    "both": (("privacy=both", "weights=uniform", "wire.kind=fp16"), "privacy.user.mechanism=local"),
    "controls": (("aggregator=scaffold", "wire.kind=int8"), "control variate"),
    "clusters": (("scheme=ifca", "wire.kind=topk"), "the counts by which scheme 'ifca' divides"),
    "paired": (("aggregator=rolora", "wire.kind=topk"), "set wire.feedback=false"),
}  # fmt: skip
ALLOWED = (
    ("privacy=example", "wire.kind=int8"), (*U, "wire.kind=topk"), (*U, "privacy.user.mechanism=local", "wire.kind=int8"),
    ("aggregator=rolora", "wire.kind=topk", "wire.feedback=false"), ("aggregator=krum", "wire.kind=topk"), ("wire.down=bf16", *U),
)  # fmt: skip


def refuse(overrides: Any) -> None:
    scenario = load("movielens", list(overrides))
    rules.refuse(scenario)
    fit.refuse(scenario)


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_break_a_bound_or_mean_nothing_is_refused_with_its_reason(what: str) -> None:
    overrides, says = REFUSED[what]
    with pytest.raises(InputError) as caught:
        refuse(overrides)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_sound_is_not_refused() -> None:
    for overrides in ALLOWED:
        refuse(overrides)


def test_rounding_a_sum_after_its_clips_would_break_the_bound_that_is_refused() -> None:
    """Others add up to just below where bfloat16 rounds up, and one user's little pushes every number over it."""
    others, user = torch.full((64,), 1 + 2.0**-8 - 2.0**-20), torch.full((64,), 2.0**-19)
    moved = pressed(others + user, "bf16") - pressed(others, "bf16")
    assert float(moved.norm()) == 4096 * float(user.norm())


def test_the_default_says_nothing_and_is_in_no_hash() -> None:
    assert scenario_hash(Scenario(wire=Wire())) == scenario_hash(Scenario())
    assert scenario_hash(Scenario(wire=Wire(keep=0.2))) != scenario_hash(Scenario())
    for wrong in ("wire.keep=0", "wire.keep=1.5", "wire.nodes=-1", "wire.kind=int4"):
        with pytest.raises(InputError, match=r"^wire\.\w+ must be"):
            load("movielens", [wrong])

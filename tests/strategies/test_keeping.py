"""Each way to keep is what its paper says, whatever the factors that a change of weights is written as."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from configs.life import Life
from configs.scenario import Scenario
from strategies import keeping
from strategies.keeping import KEEPING
from strategies.keeping.contract import MEMORY, PERIOD, SEEN, A, B, Lesson, remembered
from strategies.keeping.ewc import ANCHOR, COLUMNS, ROWS, cost, memory
from strategies.keeping.replay import IDS, replayed, reservoir
from strategies.keeping.restart import apart
from strategies.tree import State, stack

M = "private/m."
O, I, R = 5, 7, 2  # noqa: E741
START: State = {M + A: torch.randn(R, I, generator=torch.Generator().manual_seed(9)), M + B: torch.zeros(O, R)}


def draw(seed: int) -> State:
    g = torch.Generator().manual_seed(seed)
    return {M + A: torch.randn(R, I, generator=g), M + B: torch.randn(O, R, generator=g)}


def lesson(period: int = 2, importance: State | None = None) -> Lesson:
    return Lesson(START, 0, 4, period, (0, "ann", "keep"), lambda: importance or {})


def lived(name: str, seed: int = 1, period: int = 1, **options: float) -> State:
    """What a user has after the first period."""
    keep = KEEPING[name](**options)
    return {**draw(seed), **keep.memory(START, 3), PERIOD: torch.tensor([float(period)]), SEEN: torch.zeros(1)}


def change(state: State, name: str) -> Tensor:
    seen = KEEPING[name]().view(state)
    return seen[M + B] @ seen[M + A]


def random_importance() -> State:
    g = torch.Generator().manual_seed(4)
    return {remembered(M, ROWS): torch.rand(O, generator=g), remembered(M, COLUMNS): torch.rand(I, generator=g)}


@pytest.mark.parametrize("fisher", [0, 1])
def test_the_penalty_of_ewc_is_of_the_product_and_not_of_its_factors(fisher: int) -> None:
    held = KEEPING["ewc"](fisher=fisher).begin(lived("ewc"), lesson(importance=random_importance()))
    moved = held | draw(2)
    turn = torch.tensor([[2.0, 1.0], [0.5, -3.0]])
    turned = moved | {M + A: turn @ moved[M + A], M + B: moved[M + B] @ turn.inverse()}
    assert float(cost(held)) == 0 and float(cost(moved)) > 0.1
    torch.testing.assert_close(cost(turned), cost(moved))
    anchor = remembered(M, ANCHOR)
    other = moved | {anchor + A: turn @ moved[anchor + A], anchor + B: moved[anchor + B] @ turn.inverse()}
    torch.testing.assert_close(cost(other), cost(moved))


@pytest.mark.parametrize("fisher", [0, 1])
def test_the_slopes_of_ewc_are_those_of_its_cost_for_each_user(fisher: int) -> None:
    keep = KEEPING["ewc"](strength=3.0, fisher=fisher)
    states = [keep.begin(lived("ewc", s), lesson(importance=random_importance())) | draw(s + 5) for s in (1, 2)]
    assert keep.penalty
    found = keep.penalty(stack(states))
    for k, state in enumerate(states):
        leaves = {n: state[n].requires_grad_() for n in draw(0)}
        slopes = torch.autograd.grad(3 * cost({**state, **leaves}), list(leaves.values()))
        for name, slope in zip(leaves, slopes, strict=True):
            torch.testing.assert_close(found[name][k], slope)


def test_an_importance_of_one_everywhere_is_the_squared_distance_of_the_products() -> None:
    held = KEEPING["ewc"]().begin(lived("ewc"), lesson())
    moved = held | draw(2)
    plain = (moved[M + B] @ moved[M + A] - held[M + B] @ held[M + A]).square().sum() / 2
    torch.testing.assert_close(cost(moved), plain)


def test_ewc_of_a_core_is_exact() -> None:
    start = {"private/m.core.weight": torch.zeros(3, 3)}
    state = start | memory(start, 3) | {"private/m.core.weight": torch.ones(3, 3)}
    held = KEEPING["ewc"](strength=2.0).begin(state, lesson())
    penalty = KEEPING["ewc"](strength=2.0).penalty
    assert penalty and torch.equal(penalty(held | start)["private/m.core.weight"], torch.full((3, 3), -2.0))


def test_a_strength_of_zero_adds_nothing() -> None:
    for name in ("ewc", "olora"):
        penalty = KEEPING[name](strength=0.0).penalty
        assert penalty and penalty(KEEPING[name]().begin(lived(name), lesson())) == {}


def test_olora_keeps_old_factors_bit_by_bit_and_pays_only_for_shared_directions() -> None:
    keep, state = KEEPING["olora"](strength=2.0), lived("olora")
    old = {n: state[n].clone() for n in (M + A, M + B)}
    state = keep.begin(state, lesson(2)) | {PERIOD: torch.tensor([2.0])}
    assert keep.penalty
    slope = keep.penalty(state)[M + A]
    leaf = state[M + A].clone().requires_grad_()
    (expected,) = torch.autograd.grad(2.0 * (leaf @ state[remembered(M, "past") + A].T).abs().sum(), leaf)
    torch.testing.assert_close(slope, expected)
    aside = state | {M + A: apart(state[M + A], state[remembered(M, "past") + A])}
    assert float((aside[M + A] @ aside[remembered(M, "past") + A].T).abs().max()) < 1e-6
    state = keep.begin(state | draw(3), lesson(3))
    assert torch.equal(state[remembered(M, "past") + A][:R], old[M + A]) and torch.equal(
        state[remembered(M, "past") + B][:, :R], old[M + B]
    )
    assert torch.equal(state[remembered(M, "past") + A][R:], draw(3)[M + A])
    exactly = {**state, M + A: torch.eye(I)[5:7], remembered(M, "past") + A: torch.eye(I)[:4]}
    assert not bool(keep.penalty(exactly)[M + A].any()), "right angles cost nothing"


@pytest.mark.parametrize("name", ["olora", "restart", "slow_fast"])
def test_as_a_period_begins_the_model_is_what_it_was(name: str) -> None:
    state = lived(name)
    for period in (2, 3):
        after = KEEPING[name]().begin(state, lesson(period)) | {PERIOD: torch.tensor([float(period)])}
        torch.testing.assert_close(change(after, name), change(state, name), atol=1e-5, rtol=1e-5)
        assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in state.items()}
        if name != "slow_fast":
            state = after | {M + B: draw(period)[M + B]}


def test_a_restart_begins_at_right_angles_to_all_before() -> None:
    state = KEEPING["restart"]().begin(lived("restart"), lesson(2))
    assert float((state[M + A] @ state[remembered(M, "past") + A].T).abs().max()) < 1e-5 and not bool(state[M + B].any())
    assert float(state[M + A].norm()) > 0.1


def test_slow_takes_over_a_share_of_fast() -> None:
    state = lived("slow_fast")
    after = KEEPING["slow_fast"](share=0.25).begin(state, lesson())
    slow = after[remembered(M, "slow") + B] @ after[remembered(M, "slow") + A]
    torch.testing.assert_close(slow, 0.25 * state[M + B] @ state[M + A], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[M + B], 0.75 * state[M + B])


def test_a_reservoir_remembers_every_example_as_often_and_in_pieces_as_at_once() -> None:
    free = torch.full((4,), -1)
    often: Counter[int] = Counter()
    for seed in range(100):
        once = reservoir(free, 0, 16, (seed,))
        assert torch.equal(reservoir(reservoir(free, 0, 6, (seed,)), 6, 16, (seed,)), once)
        often.update(once.tolist())
    assert set(often) == set(range(16)) and all(10 <= count <= 42 for count in often.values()), often


def test_replay_trains_along_what_is_remembered_and_with_no_bound_everything() -> None:
    assert replayed({IDS: torch.tensor([5, 2, -1])}, 9) == [2, 5]
    assert replayed({IDS: torch.zeros(0)}, 3) == [0, 1, 2] and replayed({}, 3) == []
    state = {**draw(1), **KEEPING["retrain"]().memory(START, 3)}
    again = KEEPING["retrain"]().begin(state, lesson())
    assert all(torch.equal(again[name], START[name]) for name in START)


def test_what_is_remembered_never_changes_its_shape_and_is_named_as_such() -> None:
    for name, make in KEEPING.items():
        state = lived(name)
        after = make().begin(state, lesson(2))
        assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in state.items()}, name
        assert all(n.startswith(f"{MEMORY}/") for n in make().memory(START, 3))
        assert make().paper


def test_an_unknown_way_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="did you mean 'ewc'"):
        keeping.of(Scenario(life=Life(periods=2, keep="ewcc")))
    with pytest.raises(InputError, match="option of ewc"):
        keeping.of(Scenario(life=Life(periods=2, keep="ewc", keep_options={"lambda": 1.0})))

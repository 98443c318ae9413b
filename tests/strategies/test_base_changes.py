"""Aggregators that change the base: what is in the delta and what in the factors adds up to what their papers say."""

from collections.abc import Sequence

import pytest
import torch

from strategies import aggregators
from strategies.aggregators import AGGREGATORS
from strategies.aggregators.frlora import start as origin
from strategies.base import Aggregator, Release
from strategies.tree import State, add
from tests.strategies.given import assert_close, effect, ideal, product

BUILT = {name: aggregators.build(name, {}) for name in AGGREGATORS}
CHANGING = [name for name, built in BUILT.items() if built.mutates_base]
EXACT = [name for name in CHANGING if BUILT[name].exact]
SHAPES = [(5, 3, 8), (8, 3, 5), (6, 3, 6)]  # outputs, rank, inputs; a square module does not notice a transpose by its shape
B, A, DELTA = (f"base_model.model.layers.0.o_proj.{factor}.weight" for factor in ("lora_B", "lora_A", "lora_delta"))
WEIGHTS = (1.0, 7.0, 2.5)


def adapter(shape: tuple[int, int, int], seed: int, zero: bool = False) -> State:
    """Both factors and a delta of one module; B and the delta at zero as before a first round, if asked for."""
    (outputs, rank, inputs), draw = shape, torch.Generator().manual_seed(seed)
    found = {n: torch.randn(s, generator=draw) for n, s in ((B, (outputs, rank)), (A, (rank, inputs)), (DELTA, (outputs, inputs)))}
    return found | ({n: torch.zeros_like(found[n]) for n in (B, DELTA)} if zero else {})


def users(shape: tuple[int, int, int], start: State, seed: int = 10, weights: Sequence[float] = WEIGHTS) -> list[Release]:
    """Releases of users who end at other factors; nobody trains the delta."""
    ends = [adapter(shape, seed + k) for k in range(len(weights))]
    return [Release({n: w * (end[n] - start[n]) for n in (B, A)}, w) for w, end in zip(weights, ends, strict=True)]


def run(aggregator: Aggregator, shape: tuple[int, int, int], start: State, rounds: int) -> list[tuple[State, list[Release], State]]:
    """Each round as (adapter before, releases, adapter after)."""
    memory, found = aggregator.init(start), []
    for number in range(rounds):
        given = users(shape, start, 10 * (number + 1))
        memory, after = aggregator.apply(memory, start, iter(given))
        found.append((start, given, after))
        start = after
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EXACT)
def test_base_and_adapter_together_are_the_mean_of_users_models_in_every_round(name: str, shape: tuple[int, int, int]) -> None:
    for before, given, after in run(BUILT[name], shape, adapter(shape, 0), 3):
        torch.testing.assert_close(product(after, B, A).double(), ideal(before, given)[B], atol=2e-5, rtol=1e-5)
        assert not torch.allclose(after[DELTA], before[DELTA], atol=0.1)


@pytest.mark.parametrize("name", EXACT)
def test_one_user_alone_is_given_back_as_they_were(name: str) -> None:
    start = adapter(SHAPES[0], 0)
    for _, given, after in run(BUILT[name], SHAPES[0], start, 1):
        alone = BUILT[name].apply({}, start, given[:1])[1]
        assert_close(effect(alone), effect(add(start, given[0].update, 1 / given[0].weight)), 2e-5)
        assert not torch.allclose(product(alone, B, A), product(after, B, A), atol=0.1)


@pytest.mark.parametrize("name", [name for name in EXACT if BUILT[name].hetero_rank])
def test_users_of_fewer_ranks_are_summed_exactly(name: str) -> None:
    start, want, given = adapter(SHAPES[0], 0), torch.zeros(5, 8), []
    for rank, weight in ((1, 1.0), (2, 3.0), (3, 4.0)):
        end = adapter(SHAPES[0], 20 + rank)
        given.append(Release({B: weight * (end[B] - start[B])[:, :rank], A: weight * (end[A] - start[A])[:rank]}, weight))
        want = want + weight / 8 * end[B][:, :rank] @ end[A][:rank]
    torch.testing.assert_close(product(BUILT[name].apply({}, start, given)[1], B, A), want + start[DELTA], atol=2e-5, rtol=1e-5)


# ------------------------------------------------------------------ flora
def test_floras_delta_is_the_stack_with_weights_on_one_factor_and_its_lora_begins_anew() -> None:
    for shape in SHAPES:
        start = adapter(shape, 0, zero=True)
        _, given, after = run(BUILT["flora"], shape, start, 1)[0]
        ends, share = [add(start, r.update, 1 / r.weight) for r in given], [w / sum(WEIGHTS) for w in WEIGHTS]
        stacked_b, stacked_a = (torch.cat([e[n] for e in ends], axis) for n, axis in ((B, 1), (A, 0)))
        weight_R1 = torch.tensor(share).repeat_interleave(shape[1])[:, None]
        torch.testing.assert_close(after[DELTA], stacked_b @ (weight_R1 * stacked_a), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after[DELTA], stacked_b @ (weight_R1**2 * stacked_a), atol=0.1)
        away = adapter(shape, 0)
        for end in (after, BUILT["flora"].apply({}, away, users(shape, away))[1]):  # wherever the round began
            assert not end[B].any()


def test_floras_fresh_factor_follows_from_the_one_before_and_from_no_user() -> None:
    start = adapter(SHAPES[0], 0, zero=True)
    first, second = (after[A] for _, _, after in run(BUILT["flora"], SHAPES[0], start, 2))
    other = BUILT["flora"].apply({}, start, users(SHAPES[0], start, 99, (3.0,)))[1][A]
    assert torch.equal(first, other) and not torch.equal(first, second)
    for drawn in (first, second):
        assert float(drawn.abs().max()) <= 8**-0.5
        assert 0.5 < float(drawn.std()) / (8**-0.5 / 3**0.5) < 1.5
    elsewhere = {n.replace("o_proj", "q_proj"): v for n, v in start.items()} | start
    both = {n.replace("o_proj", "q_proj"): v for n, v in users(SHAPES[0], start)[0].update.items()} | users(SHAPES[0], start)[0].update
    after = BUILT["flora"].apply({}, elsewhere, [Release(both, 1.0)])[1]
    assert not torch.equal(after[A], after[A.replace("o_proj", "q_proj")]), "modules of one shape get factors of their own"


# ------------------------------------------------------------------ fedex, fedmomentum
def test_fedex_sends_fedits_factors_and_a_residual_of_no_more_ranks_than_all_users_but_one() -> None:
    shape = (40, 2, 30)
    start = adapter(shape, 0, zero=True)
    _, given, after = run(BUILT["fedex"], shape, start, 1)[0]
    fedit = BUILT["fedit"].apply({}, start, given)[1]
    assert all(torch.equal(after[n], fedit[n]) for n in (B, A))
    values = torch.linalg.svdvals(after[DELTA].double())
    assert int((values > 1e-5 * values[0]).sum()) == (len(WEIGHTS) - 1) * 2


@pytest.mark.parametrize("shape", SHAPES)
def test_fedmomentum_sends_flexloras_factors_and_the_tail_of_the_svd(shape: tuple[int, int, int]) -> None:
    start = adapter(shape, 0)
    _, given, after = run(BUILT["fedmomentum"], shape, start, 1)[0]
    flexlora = BUILT["flexlora"].apply({}, start, given)[1]
    assert all(torch.equal(after[n], flexlora[n]) for n in (B, A))
    tail = torch.linalg.svdvals(ideal(start, given)[B] - start[DELTA])[shape[1] :]
    torch.testing.assert_close(torch.linalg.svdvals((after[DELTA] - start[DELTA]).double())[: len(tail)], tail, atol=1e-5, rtol=1e-5)
    assert float(tail[0]) > 0.1


# ------------------------------------------------------------------ frlora
@pytest.mark.parametrize("shape", SHAPES)
def test_frlora_gives_the_base_what_the_means_have_gained_and_begins_each_round_at_one_place(shape: tuple[int, int, int]) -> None:
    start = adapter(shape, 0)
    again = origin(B, start[B])
    assert float(again.abs().min()) > 0, "not zero, from where A would not move"
    for before, given, after in run(BUILT["frlora"], shape, start, 3):
        fedit = BUILT["fedit"].apply({}, before, given)[1]
        torch.testing.assert_close(product(after, B, A), product(fedit, B, A), atol=2e-5, rtol=1e-5)
        gain = fedit[B] @ fedit[A] - again @ start[A]
        torch.testing.assert_close(after[DELTA] - before[DELTA], gain, atol=2e-5, rtol=1e-5)
        assert torch.equal(after[A], start[A]) and torch.equal(after[B], again)


def test_a_change_of_any_rank_adds_up_over_rounds_where_fedits_has_the_rank_of_a_lora() -> None:
    shape = (12, 2, 10)
    ends = {name: run(BUILT[name], shape, adapter(shape, 0, zero=True), 4)[-1][2] for name in (*CHANGING, "fedit")}
    ranks = {name: int(torch.linalg.matrix_rank(product(end, B, A))) for name, end in ends.items()}
    assert ranks.pop("fedit") == 2 and all(rank >= 8 for rank in ranks.values())

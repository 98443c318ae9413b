"""What every registered aggregator and scheme promises; a new one gets these tests with its line in the registry."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from configs.errors import InputError
from strategies import aggregators, schemes
from strategies.aggregators import AGGREGATORS
from strategies.base import Aggregator, Release
from strategies.schemes import SCHEMES
from strategies.tree import State

MODULES = ("base_model.model.layers.0.q_proj", "base_model.model.layers.1.down_proj")
LINEAR = [name for name in AGGREGATORS if aggregators.build(name, {}).linear]
EXACT = [name for name in AGGREGATORS if aggregators.build(name, {}).exact]
ADAPTIVE = ("fedadam",)  # these scale every number of the mean update
WEIGHTS = (1.0, 7.0, 2.5)


@pytest.fixture(params=AGGREGATORS)
def aggregator(request: pytest.FixtureRequest) -> Aggregator:
    """Each registered one, built with its defaults."""
    return aggregators.build(request.param, {})


def shared(seed: int = 0) -> State:
    """An adapter with both factors away from zero."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"lora_A": (3, 8), "lora_B": (5, 3)}
    return {f"{m}.{f}.weight": torch.randn(s, generator=draw) for m in MODULES for f, s in shapes.items()}


def release(aggregator: Aggregator, update: State, weight: float, round_: int = 1) -> Release:
    """A node's release of an update: the round's factors only, multiplied by the weight."""
    sent = {n: v * weight for n, v in update.items() if any(f".{f}." in n for f in aggregator.factors(round_))}
    return Release(sent, weight, 1, {"tokens": 1.0})


def releases(aggregator: Aggregator, weights: Sequence[float] = WEIGHTS, scale: float = 1.0) -> list[Release]:
    """Users with different updates and weights."""
    return [release(aggregator, shared(10 + i), w * scale) for i, w in enumerate(weights)]


def applied(aggregator: Aggregator, given: Sequence[Release] | Iterator[Release], start: State | None = None) -> tuple[State, State]:
    """One round from the beginning: (memory, shared)."""
    start = shared() if start is None else start
    return aggregator.apply(aggregator.init(start), start, given)


def assert_close(a: State, b: State, tolerance: float = 1e-6) -> None:
    """Equal names, and values up to rounding."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=tolerance, rtol=tolerance)


def test_the_order_of_users_does_not_matter(aggregator: Aggregator) -> None:
    want = applied(aggregator, releases(aggregator))
    for order in itertools.permutations(releases(aggregator)):
        found = applied(aggregator, order)
        assert_close(found[0], want[0])
        assert_close(found[1], want[1])


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name not in ADAPTIVE])
def test_equal_updates_are_returned_as_they_are(name: str) -> None:
    aggregator, update = aggregators.build(name, {}), shared(3)
    found = applied(aggregator, [release(aggregator, update, w) for w in WEIGHTS])[1]
    for key, value in shared().items():
        sent = any(f".{f}." in key for f in aggregator.factors(1))
        torch.testing.assert_close(found[key], value + update[key] if sent else value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 0.5, 100.0])
def test_a_common_factor_of_all_weights_scales_out(aggregator: Aggregator, scale: float) -> None:
    assert_close(applied(aggregator, releases(aggregator, scale=scale))[1], applied(aggregator, releases(aggregator))[1], 1e-5)


def test_inputs_stay_as_they_are_over_several_rounds(aggregator: Aggregator) -> None:
    start = shared()
    memory = aggregator.init(start)
    for _ in range(3):
        given = releases(aggregator)
        before = copy.deepcopy((memory, start, given))
        after = aggregator.apply(memory, start, given)
        for old, new in (
            (before[0], memory),
            (before[1], start),
            *((b.update, g.update) for b, g in zip(before[2], given, strict=True)),
        ):
            assert old.keys() == new.keys()
            assert all(torch.equal(old[n], new[n]) for n in old)
        memory, start = after


def test_names_shapes_and_dtypes_are_kept(aggregator: Aggregator) -> None:
    memory, found = applied(aggregator, releases(aggregator))
    for before, after in ((shared(), found), (aggregator.init(shared()), memory)):
        assert {n: (v.shape, v.dtype) for n, v in before.items()} == {n: (v.shape, v.dtype) for n, v in after.items()}


def test_releases_are_consumed_once_and_one_at_a_time(aggregator: Aggregator) -> None:
    given = releases(aggregator)
    stream = (r for r in given)
    found = applied(aggregator, stream)
    assert next(stream, None) is None
    assert_close(found[1], applied(aggregator, given)[1])


@pytest.mark.parametrize("nothing", [[], [Release({}, 0.0, 1, {})]], ids=["no release", "an empty one"])
def test_without_an_update_the_adapter_stays(aggregator: Aggregator, nothing: list[Release]) -> None:
    memory, found = applied(aggregator, nothing)
    assert all(torch.equal(found[n], v) for n, v in shared().items())
    assert memory.keys() == aggregator.init(shared()).keys()


def test_a_user_without_weight_changes_nothing(aggregator: Aggregator) -> None:
    given = releases(aggregator)
    assert_close(applied(aggregator, [*given, Release({}, 0.0, 1, {})])[1], applied(aggregator, given)[1])


def test_only_the_rounds_factors_move(aggregator: Aggregator) -> None:
    assert set(aggregator.factors(1)) <= {"lora_A", "lora_B"}
    for name, value in applied(aggregator, releases(aggregator))[1].items():
        if not any(f".{f}." in name for f in aggregator.factors(1)):
            assert torch.equal(value, shared()[name])


def test_memory_is_kept_exactly_by_those_that_say_so(aggregator: Aggregator) -> None:
    assert bool(aggregator.init(shared())) == aggregator.stateful


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_aggregator_takes_sums_of_releases_for_the_single_ones(name: str) -> None:
    aggregator = aggregators.build(name, {})
    given = releases(aggregator)
    first = {n: given[0].update[n] + given[1].update[n] for n in given[0].update}
    summed = [Release(first, given[0].weight + given[1].weight, 2, {}), given[2]]
    one, two = applied(aggregator, given), applied(aggregator, summed)
    assert_close(one[0], two[0], 1e-5)
    assert_close(one[1], two[1], 1e-5)


# ------------------------------------------------------------------ exactness: sum p_k B_k A_k
def product_gap(aggregator: Aggregator) -> float:
    """How far the aggregate's product lies from the weighted mean of the users' products, over all modules."""
    start, users = shared(), [shared(10 + i) for i in range(3)]
    given = [release(aggregator, u, w) for u, w in zip(users, WEIGHTS, strict=True)]
    found, worst = applied(aggregator, given, start)[1], 0.0
    for module in MODULES:
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        ideal = torch.zeros(5, 8)
        for r, w in zip(given, WEIGHTS, strict=True):
            mine = {n: start[n] + (r.update[n] / w if n in r.update else 0.0) for n in (a, b)}
            ideal += w / sum(WEIGHTS) * mine[b] @ mine[a]
        worst = max(worst, float((found[b] @ found[a] - ideal).abs().max()))
    return worst


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_aggregator_reproduces_the_mean_of_products(name: str) -> None:
    assert product_gap(aggregators.build(name, {})) < 1e-5


def test_and_the_check_tells_them_from_fedit() -> None:
    assert EXACT
    assert "fedit" not in EXACT
    assert product_gap(aggregators.build("fedit", {})) > 0.1


# ------------------------------------------------------------------ single ones
def test_fedavgm_carries_its_momentum_on() -> None:
    aggregator = aggregators.build("fedavgm", {"momentum": 0.5, "lr": 2.0})
    start = {n: torch.zeros_like(v) for n, v in shared().items()}
    update = {n: torch.ones_like(v) for n, v in start.items()}
    memory, first = aggregator.apply(aggregator.init(start), start, [release(aggregator, update, 3.0)])
    _, second = aggregator.apply(memory, first, [release(aggregator, update, 3.0)])
    assert all(torch.equal(v, torch.full_like(v, 2.0)) for v in first.values())
    assert all(torch.equal(v, torch.full_like(v, 2.0 + 2.0 * 1.5)) for v in second.values())


def test_fedavgm_without_momentum_is_fedit() -> None:
    plain = aggregators.build("fedavgm", {"momentum": 0.0})
    assert_close(applied(plain, releases(plain))[1], applied(aggregators.build("fedit", {}), releases(plain))[1])


def test_fedadam_moves_as_torchs_adam_without_correction_on_minus_the_mean_update() -> None:
    adam = aggregators.build("fedadam", {"lr": 0.05, "tau": 1e-3})
    memory, state = adam.init(shared()), shared()
    m = v = torch.zeros(3, 8)
    name = f"{MODULES[0]}.lora_A.weight"
    want = state[name]
    for seed in range(3):
        memory, state = adam.apply(memory, state, [release(adam, shared(seed), 2.0)])
        d = shared(seed)[name]
        m, v = 0.9 * m + 0.1 * d, 0.99 * v + 0.01 * d * d
        want = want + 0.05 * m / (v.sqrt() + 1e-3)
        torch.testing.assert_close(state[name], want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [lambda: aggregators.build("fedti", {}), lambda: schemes.build("dul")])
def test_an_unknown_name_is_answered_with_the_nearest(build: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="did you mean"):
        build()


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(InputError, match="'momentun'"):
        aggregators.build("fedavgm", {"momentun": 0.5})


# ------------------------------------------------------------------ schemes
@pytest.mark.parametrize("name", SCHEMES)
def test_every_tensor_of_a_scheme_has_an_owner_and_phases_move_only_what_there_is(name: str) -> None:
    scheme = schemes.build(name)
    owners = {scheme.owner(block, tensor) for block in scheme.blocks for tensor in shared()}
    assert scheme.blocks
    assert set(scheme.blocks) <= {"shared", "private"}
    assert len(set(scheme.blocks)) == len(scheme.blocks)
    assert owners <= {"shared", "private", "frozen"}
    moving = {owner for phase in scheme.phases for owner in phase.moves}
    assert moving <= owners, "a phase moves what nobody has"
    assert owners - {"frozen"} <= moving, "what is not frozen trains in some phase"
    assert all(phase.moves for phase in scheme.phases)
    assert len({phase.name for phase in scheme.phases}) == len(scheme.phases)


@pytest.mark.parametrize("name", [name for name in SCHEMES if "private" in schemes.build(name).blocks])
def test_in_a_private_block_nothing_is_shared_but_the_representation_that_fedrep_names(name: str) -> None:
    scheme = schemes.build(name)
    prefix = "base_model.model.x."
    others = ["prompt_embeddings", f"{prefix}lora_B.weight", f"{prefix}core.weight", f"{prefix}ia3_l"]
    representation = [f"{prefix}lora_A.weight", f"{prefix}mix.weight"]
    assert {scheme.owner("private", tensor) for tensor in representation} == {"shared" if name == "fedrep" else "private"}
    assert "shared" not in {scheme.owner("private", tensor) for tensor in others}

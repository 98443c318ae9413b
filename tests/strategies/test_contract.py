"""What every registered aggregator and scheme promises; a new one gets these tests with its line in the registry."""

import copy
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from configs.errors import InputError
from strategies import aggregators, schemes
from strategies.aggregators import AGGREGATORS
from strategies.base import Aggregator, Release, as_it_ended, personal, released
from strategies.files import read_state, write_state
from strategies.lora import pairs
from strategies.schemes import SCHEMES
from tests.strategies.given import ALONE, WEIGHTS, applied, assert_close, begun, effect, ideal, release, releases, shared

BUILT = {name: aggregators.build(name, {}) for name in AGGREGATORS}
LINEAR = [name for name, built in BUILT.items() if built.linear]
EXACT = [name for name, built in BUILT.items() if built.exact]
BOTH = [name for name, built in BUILT.items() if len(built.factors(1)) == 2]
ADAPTIVE = ("fedadagrad", "fedadam", "fedyogi")  # these scale every number of the mean update
AS_IT_IS = {"ties": {"density": 1.0}, "lora_a2": {"keep": 1.0}}  # options under which nothing is left out of an update
STREAMING = [*LINEAR, "fedask", "fedex", "fedmomentum", "flexlora", "flora", "hetlora", "lora_fair"]


@pytest.fixture(params=AGGREGATORS)
def aggregator(request: pytest.FixtureRequest) -> Aggregator:
    """Each registered one, built with its defaults."""
    return BUILT[request.param]


def test_the_order_of_users_does_not_matter(aggregator: Aggregator) -> None:
    want = applied(aggregator, releases(aggregator))
    for order in itertools.permutations(releases(aggregator)):
        found = applied(aggregator, order)
        assert_close(found[0], want[0])
        assert_close(found[1], want[1], 1e-5)


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name not in ADAPTIVE])
def test_equal_updates_act_as_one_of_them_would(name: str) -> None:
    aggregator, update = aggregators.build(name, AS_IT_IS.get(name, {})), shared(3)
    found = applied(aggregator, [release(aggregator, update, w) for w in WEIGHTS])[1]
    sent = {n: v + update[n] if released(n, aggregator.factors(1)) and n in update else v for n, v in begun(aggregator).items()}
    assert_close(effect(found), effect(sent), 2e-5)


@pytest.mark.parametrize("scale", [1e-3, 0.5, 100.0])
def test_a_common_factor_of_all_weights_scales_out(aggregator: Aggregator, scale: float) -> None:
    assert_close(applied(aggregator, releases(aggregator, scale=scale))[1], applied(aggregator, releases(aggregator))[1], 1e-5)


def test_inputs_stay_as_they_are_over_several_rounds(aggregator: Aggregator) -> None:
    start = begun(aggregator)
    memory = aggregator.init(start)
    for number in (1, 2, 3):
        given = releases(aggregator, round_=number)
        before = copy.deepcopy((memory, start, given))
        after = aggregator.apply(memory, start, given)
        updates = [(b.update, g.update) for b, g in zip(before[2], given, strict=True)]
        for old, new in ((before[0], memory), (before[1], start), *updates):
            assert old.keys() == new.keys()
            assert all(torch.equal(old[n], new[n]) for n in old)
        memory, start = after


def test_names_shapes_and_dtypes_are_kept(aggregator: Aggregator) -> None:
    memory, found = applied(aggregator, releases(aggregator))
    for before, after in ((begun(aggregator), found), (aggregator.init(begun(aggregator)), memory)):
        assert {n: (v.shape, v.dtype) for n, v in before.items()} == {n: (v.shape, v.dtype) for n, v in after.items()}


def test_releases_are_consumed_once_and_one_at_a_time(aggregator: Aggregator) -> None:
    given = releases(aggregator)
    stream = (r for r in given)
    found = applied(aggregator, stream)
    assert next(stream, None) is None
    assert_close(found[1], applied(aggregator, given)[1])


@pytest.mark.parametrize("name", STREAMING)
def test_what_streams_lets_go_of_a_release_when_it_takes_the_next(name: str) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def stream() -> Iterator[Release]:
        for seed in range(5):
            one = release(BUILT[name], shared(seed), 2.0)
            held.extend(weakref.ref(value) for value in one.update.values())
            count = len(one.update)
            yield one
            del one
            assert sum(ref() is not None for ref in held) <= count

    applied(BUILT[name], stream())
    assert held


@pytest.mark.parametrize("nothing", [[], [Release({}, 0.0, 1, {})]], ids=["no release", "an empty one"])
def test_without_an_update_the_adapter_stays(aggregator: Aggregator, nothing: list[Release]) -> None:
    memory, found = applied(aggregator, nothing)
    assert all(torch.equal(found[n], v) for n, v in begun(aggregator).items())
    assert memory.keys() == aggregator.init(begun(aggregator)).keys()


def test_a_user_without_weight_changes_nothing(aggregator: Aggregator) -> None:
    given = releases(aggregator)
    assert_close(applied(aggregator, [*given, Release({}, 0.0, 1, {})])[1], applied(aggregator, given)[1])


@pytest.mark.parametrize("round_", [1, 2])
def test_only_the_rounds_factors_move_and_those_that_the_server_carries(aggregator: Aggregator, round_: int) -> None:
    moving = {*aggregator.factors(round_), *aggregator.carried}
    assert moving <= {"lora_A", "lora_B", "lora_delta"}
    assert not set(aggregator.carried) & set(aggregator.factors(round_))
    for name, value in applied(aggregator, releases(aggregator, round_=round_))[1].items():
        back = aggregator.mutates_base and "lora_delta" not in name  # factors may go back to their start
        assert torch.equal(value, begun(aggregator)[name]) != released(name, moving) or name in ALONE or back


def test_what_changes_the_base_says_so_and_keeps_the_change_in_a_tensor_that_nobody_trains(aggregator: Aggregator) -> None:
    assert aggregator.mutates_base == ("lora_delta" in aggregator.carried)
    assert "lora_delta" not in (*aggregator.factors(1), *aggregator.factors(2))
    assert not aggregator.mutates_base or aggregator.paired


def test_what_is_no_pair_of_factors_moves_too(aggregator: Aggregator) -> None:
    found = applied(aggregator, releases(aggregator))[1]
    for name in ALONE:
        assert torch.equal(found[name], shared()[name]) != released(name, aggregator.factors(1))


def test_memory_is_kept_exactly_by_those_that_say_so(aggregator: Aggregator) -> None:
    assert bool(aggregator.init(begun(aggregator))) == aggregator.stateful


def test_a_round_after_a_checkpoint_is_the_same_round(aggregator: Aggregator, tmp_path: Path) -> None:
    first = applied(aggregator, releases(aggregator))
    kept = []
    for name, state in zip(("memory", "shared"), first, strict=True):
        write_state(tmp_path / name, state)
        kept.append(read_state(tmp_path / name))
    there, here = (aggregator.apply(memory, state, releases(aggregator, round_=2)) for memory, state in (kept, first))
    for a, b in zip(there, here, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_an_aggregator_needs_either_a_sum_or_each_user(aggregator: Aggregator) -> None:
    assert aggregator.linear != aggregator.individual
    assert aggregator.paper.startswith(("arXiv ", "ICLR "))


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_aggregator_takes_sums_of_releases_for_the_single_ones(name: str) -> None:
    given = releases(BUILT[name])
    first = {n: given[0].update[n] + given[1].update[n] for n in given[0].update}
    summed = [Release(first, given[0].weight + given[1].weight, 2, {}), given[2]]
    one, two = applied(BUILT[name], given), applied(BUILT[name], summed)
    assert_close(one[0], two[0], 1e-5)
    assert_close(one[1], two[1], 1e-5)


@pytest.mark.parametrize("round_", [1, 2, 3])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_what_is_done_at_home_keeps_names_shapes_and_products(name: str, round_: int) -> None:
    aggregator = aggregators.build(name, AS_IT_IS.get(name, {}))
    if aggregator.at_home is None:
        return
    received, update = shared(), shared(4)
    before = copy.deepcopy((received, update))
    found = aggregator.at_home(round_, received, update)
    assert {n: (v.shape, v.dtype) for n, v in found.items()} == {n: (v.shape, v.dtype) for n, v in update.items()}
    assert all(torch.equal(a[n], b[n]) for a, b in zip((received, update), before, strict=True) for n in a)
    one, two = (effect({n: received[n] + u[n] for n in u}) for u in (update, found))
    assert_close(one, two, 1e-5)


# ------------------------------------------------------------------ exactness: sum p_k B_k A_k
def product_gap(aggregator: Aggregator, round_: int = 1) -> float:
    """How far the aggregate's product lies from the weighted mean of the users' products, over all modules."""
    given = releases(aggregator, round_=round_)
    found = effect(applied(aggregator, given)[1])
    return max(float((found[name] - want).abs().max()) for name, want in ideal(begun(aggregator), given).items())


@pytest.mark.parametrize("round_", [1, 2])
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_aggregator_reproduces_the_mean_of_products(name: str, round_: int) -> None:
    assert product_gap(BUILT[name], round_) < 2e-5


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name not in EXACT])
def test_and_no_other_aggregator_does(name: str) -> None:
    assert EXACT
    assert product_gap(BUILT[name]) > 0.1


# ------------------------------------------------------------------ (B G, G^-1 A) is the same adapter
def rewritten(aggregator: Aggregator) -> list[Release]:
    """The same users, whose products are each written by other factors."""
    found, draw = [], torch.Generator().manual_seed(5)
    for seed, weight in enumerate(WEIGHTS):
        update, start = shared(10 + seed), shared()
        for b, a in pairs(start):
            gauge = torch.linalg.qr(torch.randn(3, 3, generator=draw)).Q * torch.tensor([2.0, 1.0, 0.5])
            update[b] = (start[b] + update[b]) @ gauge - start[b]
            update[a] = torch.linalg.inv(gauge) @ (start[a] + update[a]) - start[a]
        found.append(release(aggregator, update, weight))
    return found


@pytest.mark.parametrize("name", [name for name in BOTH if name != "krum"])  # which may choose the same user
def test_how_users_write_their_products_matters_exactly_where_nothing_else_is_said(name: str) -> None:
    one, two = (effect(applied(BUILT[name], given)[1]) for given in (releases(BUILT[name]), rewritten(BUILT[name])))
    gap = max(float((one[n] - two[n]).abs().max()) for n in one)
    assert (gap < 1e-4) if BUILT[name].invariant else (gap > 1e-3)


# ------------------------------------------------------------------ names
@pytest.mark.parametrize("build", [lambda: aggregators.build("fedti", {}), lambda: schemes.build("dul", {})])
def test_an_unknown_name_is_answered_with_the_nearest(build: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="did you mean"):
        build()


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(InputError, match="'momentun'"):
        aggregators.build("fedavgm", {"momentun": 0.5})


def mine(scale: float = 1.0) -> Aggregator:
    """One that nobody has registered."""
    return aggregators.build("task_arithmetic", {"scale": scale})


def not_said(scale: float = 1.0):
    raise AssertionError(scale)


def test_an_aggregator_of_ones_own_is_named_by_its_import_path() -> None:
    found = aggregators.build(f"{__name__}.mine", {"scale": 2.0})
    assert_close(applied(found, releases(found))[1], applied(mine(2.0), releases(found))[1])


@pytest.mark.parametrize(
    ("path", "said"),
    [("json.dumps", "annotated with '-> Aggregator'"), (f"{__name__}.not_said", "annotated"), (f"{__name__}.mien", "annotated"),
     ("os.abort", "annotated"), ("no_such.module", "No module named 'no_such'")],
)  # fmt: skip
def test_nothing_else_is_called_by_its_import_path(path: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        aggregators.build(path, {})


# ------------------------------------------------------------------ schemes
@pytest.mark.parametrize("name", SCHEMES)
def test_every_tensor_of_a_scheme_has_an_owner_and_phases_move_only_what_there_is(name: str) -> None:
    scheme = schemes.build(name, {})
    owners = {scheme.owner(block, tensor) for block in scheme.blocks for tensor in shared()}
    assert scheme.blocks
    assert set(scheme.blocks) <= {"shared", "private", "rest"}
    assert "shared" in scheme.blocks or not scheme.twins
    assert len(set(scheme.blocks)) == len(scheme.blocks)
    assert owners <= {"shared", "private", "frozen"}
    every = (*scheme.phases, *((scheme.final,) if personal(scheme) else ()))
    moving = {owner for phase in every for owner in phase.moves}
    sent = {"shared"} if any(phase.end is not as_it_ended for phase in scheme.phases) else set()
    assert moving <= owners, "a phase moves what nobody has"
    assert owners - {"frozen"} == moving | sent, "what is not frozen trains in some phase, or is what a phase ends with"
    assert all(phase.moves and {*phase.applies} <= {*scheme.blocks} for phase in every)
    assert len({phase.name for phase in scheme.phases}) == len(scheme.phases)


@pytest.mark.parametrize("name", [name for name in SCHEMES if "private" in schemes.build(name, {}).blocks])
def test_in_a_private_block_nothing_is_shared_but_the_representation_that_fedrep_names(name: str) -> None:
    scheme = schemes.build(name, {})
    prefix = "base_model.model.x."
    others = ["prompt_embeddings", f"{prefix}lora_B.weight", f"{prefix}core.weight", f"{prefix}ia3_l"]
    representation = [f"{prefix}lora_A.weight", f"{prefix}mix.weight"]
    assert {scheme.owner("private", tensor) for tensor in representation} == {"shared" if name == "fedrep" else "private"}
    assert "shared" not in {scheme.owner("private", tensor) for tensor in others}

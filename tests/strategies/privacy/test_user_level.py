"""No user moves the sum by more than the bound; noise of the right scale is added before anything else; the denominator is fixed."""

import math
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from configs.errors import InputError
from strategies import aggregators
from strategies.base import Release
from strategies.files import read_state, write_state
from strategies.privacy.clipping import split
from strategies.privacy.events import Event
from strategies.privacy.local import privatized
from strategies.privacy.noise import Noise, entropic, keyed, standard
from strategies.privacy.user_level import BIT, Adaptive, adaptive_sum_and_noise, booked, bounded, start, sum_and_noise, summed
from strategies.tree import State, norm, subtract

LIKE: State = {"x.lora_A.weight": torch.zeros(3, 4), "x.lora_B.weight": torch.zeros(5, 3)}
WIDE: State = {"w": torch.zeros(100, 300)}
SIZES = st.sampled_from([0.0, 1e-9, 0.5, 1.0, 3.0, 1e6, 1e30, math.nan, math.inf])


def user(seed: int, size: float = 1.0, like: State = LIKE) -> Release:
    """One user's release with an update of this norm."""
    draw = torch.Generator().manual_seed(seed)
    update = {name: torch.randn(value.shape, generator=draw) for name, value in like.items()}
    scale = size / norm(update)
    return Release({name: value * scale for name, value in update.items()}, 1.0, 1, {"loss": 2.0})


def zeroed(release: Release) -> Release:
    """The neighbour's: nothing in place of the update."""
    return replace(release, update={name: torch.zeros_like(value) for name, value in release.update.items()})


def together(releases: list[Release], bound: float) -> Release:
    """A node's sum, of users that it has clipped."""
    sent = [bounded(release, bound) for release in releases]
    update = {name: sum((r.update[name].double() for r in sent), torch.zeros(())).float() for name in LIKE}
    return Release(update, float(len(sent)), len(sent), {BIT: sum(r.metrics[BIT] for r in sent)})


def silent(shape: torch.Size) -> torch.Tensor:
    """A source of noise that adds nothing."""
    return torch.zeros(shape, dtype=torch.float64)


def pvalue(release: Release, pre_noise: State, deviation: float) -> float:
    """Of the hypothesis that the release is the sum with normal noise of this standard deviation."""
    rest = torch.cat([(release.update[name].double() - value).flatten() for name, value in pre_noise.items()])
    return float(stats.kstest(rest.numpy() / deviation, "norm").pvalue)


# ------------------------------------------------------------------ sensitivity
@settings(max_examples=100, deadline=None, derandomize=True)
@given(sizes=st.lists(SIZES, min_size=1, max_size=6), bound=st.sampled_from([1e-6, 0.3, 1.0, 1e4]), data=st.data())
def test_a_user_without_an_update_moves_the_sum_by_at_most_the_bound(sizes: list[float], bound: float, data: st.DataObject) -> None:
    cohort = [user(i, size) for i, size in enumerate(sizes)]
    who = data.draw(st.integers(0, len(cohort) - 1))
    neighbour = [zeroed(r) if i == who else r for i, r in enumerate(cohort)]
    absent = [r for i, r in enumerate(cohort) if i != who]
    for other in (neighbour, absent):
        moved = norm(subtract(summed(cohort, bound, LIKE)[0], summed(other, bound, LIKE)[0]))
        assert moved <= bound * (1 + 1e-6)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(sizes=st.lists(SIZES, min_size=2, max_size=6))
def test_so_does_a_user_in_a_sum_of_a_node_that_clips_its_users(sizes: list[float]) -> None:
    cohort = [user(i, size) for i, size in enumerate(sizes)]
    ours, theirs = (summed([together(c, 0.7), user(99)], 0.7, LIKE) for c in (cohort, [zeroed(cohort[0]), *cohort[1:]]))
    assert norm(subtract(ours[0], theirs[0])) <= 0.7 * (1 + 1e-6)


def test_a_user_with_a_large_update_moves_the_sum_by_the_whole_bound() -> None:
    assert norm(summed([user(0, 1e6)], 0.5, LIKE)[0]) == pytest.approx(0.5)


def test_a_nodes_sum_is_held_to_the_bound_times_its_users() -> None:
    node = replace(user(0, 100.0), weight=3.0, users=3)
    assert norm(summed([node], 0.5, LIKE)[0]) == pytest.approx(1.5)
    within = together([user(i, 9.0) for i in range(3)], 0.5)
    assert all(torch.equal(value.float(), within.update[name]) for name, value in summed([within], 0.5, LIKE)[0].items())


def test_the_sum_is_in_float64_so_that_small_updates_are_not_lost_beside_large_ones() -> None:
    large, small = (Release({"w": torch.tensor([size])}, 1.0) for size in (1.0, 2.0**-30))
    assert float(summed([large, *[small] * 8], 1.0, {"w": torch.zeros(1)})[0]["w"]) == 1.0 + 2.0**-27


def test_bounded_users_are_not_clipped_again() -> None:
    sent = bounded(user(0, 7.0), 0.3)
    assert all(torch.equal(value.float(), sent.update[name]) for name, value in summed([sent], 0.3, LIKE)[0].items())
    assert sent.metrics == {"loss": 2.0, BIT: 0.0}
    assert bounded(user(0, 0.2), 0.3).metrics[BIT] == 1.0


# ------------------------------------------------------------------ noise
@pytest.mark.parametrize("noise", [keyed(5), entropic()], ids=["keyed", "entropic"])
def test_the_sum_has_noise_of_its_multiplier_times_the_bound_and_no_other(noise: Noise) -> None:
    cohort = [user(i, 50.0, WIDE) for i in range(3)]
    release, event = sum_and_noise(cohort, 0.2, 1.3, 10.0, noise, WIDE)
    pre_noise = summed(cohort, 0.2, WIDE)[0]
    assert event == Event(1.3)
    assert pvalue(release, pre_noise, 1.3 * 0.2) > 1e-7
    for wrong in (2 / 3, 3 / 2):
        assert pvalue(release, pre_noise, 1.3 * 0.2 * wrong) < 1e-30


def test_a_local_release_has_its_own_noise_and_the_same_cost() -> None:
    one = user(0, 50.0, WIDE)
    release, event = privatized(one, 0.2, 1.3, keyed(1), WIDE)
    assert event == Event(1.3)
    assert (release.weight, release.users, release.metrics) == (1.0, 1, {})
    pre_noise = summed([one], 0.2, WIDE)[0]
    assert norm(pre_noise) <= 0.2
    assert pvalue(release, pre_noise, 1.3 * 0.2) > 1e-7
    for wrong in (2 / 3, 3 / 2):
        assert pvalue(release, pre_noise, 1.3 * 0.2 * wrong) < 1e-30


def test_a_user_with_nothing_to_say_sends_noise_as_well() -> None:
    release, _ = privatized(Release({}, 0.0), 1.0, 1.0, keyed(1), LIKE)
    assert all(torch.equal(release.update[n], v.float()) for n, v in standard(LIKE, keyed(1)).items())
    with pytest.raises(InputError, match="users is 2"):
        privatized(Release(user(0).update, 2.0, 2), 1.0, 1.0, keyed(1), LIKE)


# ------------------------------------------------------------------ the denominator, and what else leaves
@pytest.mark.parametrize("count", [0, 1, 4, 25])
def test_the_mean_is_over_the_denominator_however_many_take_part(count: int) -> None:
    cohort = [user(i, 0.5) for i in range(count)]
    release, _ = sum_and_noise(cohort, 1.0, 0.8, 10.0, keyed(2), LIKE)
    start_ = {name: torch.ones_like(value) for name, value in LIKE.items()}
    _, after = aggregators.build("fedit", {}).apply({}, start_, [release])
    for name, drawn in standard(LIKE, keyed(2)).items():
        total = sum((r.update[name].double() for r in cohort), torch.zeros(LIKE[name].shape, dtype=torch.float64))
        torch.testing.assert_close(after[name], (1 + (total + 0.8 * drawn) / 10).float())


def test_a_release_is_the_same_in_all_that_is_not_noised_whoever_took_part() -> None:
    for cohort in ([], [user(0)], [user(0), replace(user(1), weight=4.0, users=4)]):
        release, _ = sum_and_noise(cohort, 1.0, 0.8, 10.0, keyed(2), LIKE)
        assert (release.weight, release.users, release.metrics) == (10.0, 1, {})
        assert {n: (v.shape, v.dtype) for n, v in release.update.items()} == {n: (v.shape, v.dtype) for n, v in LIKE.items()}


def test_momentum_comes_after_the_noise() -> None:
    fedavgm = aggregators.build("fedavgm", {"momentum": 0.5})
    shared, memory = LIKE, fedavgm.init(LIKE)
    want = carried = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in LIKE.items()}
    for number in (1, 2, 3):
        cohort = [user(10 * number + i, 5.0) for i in range(3)]
        release, _ = sum_and_noise(cohort, 1.0, 2.0, 4.0, keyed(number), LIKE)
        memory, shared = fedavgm.apply(memory, shared, [release])
        total, drawn = summed(cohort, 1.0, LIKE)[0], standard(LIKE, keyed(number))
        carried = {name: 0.5 * m + (total[name] + 2.0 * drawn[name]) / 4.0 for name, m in carried.items()}
        want = {name: value + carried[name] for name, value in want.items()}
    for name, value in want.items():
        torch.testing.assert_close(shared[name], value.float(), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ what comes in
@pytest.mark.parametrize("bad", [Release({"x.lora_A.weight": torch.full((3, 4), math.nan)}, 1.0), Release({"y": torch.ones(2)}, 1.0),
                                 Release({"x.lora_A.weight": torch.ones(4, 3)}, 1.0), Release({}, 0.0)])  # fmt: skip
def test_a_release_that_makes_no_sense_adds_nothing(bad: Release) -> None:
    with_it, without = (sum_and_noise([*more, user(0)], 1.0, 0.5, 4.0, keyed(3), LIKE)[0] for more in ([bad], []))
    assert all(torch.equal(with_it.update[name], value) for name, value in without.update.items())


@pytest.mark.parametrize(("weight", "users"), [(2.0, 1), (0.5, 1), (1.0, 2), (math.nan, 1), (0.0, 0), (0.0, 1)])
def test_a_users_weight_is_one_or_the_release_is_refused(weight: float, users: int) -> None:
    with pytest.raises(InputError, match="weight"):
        summed([replace(user(0), weight=weight, users=users)], 1.0, LIKE)


def test_releases_are_taken_one_at_a_time() -> None:
    seen: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def one(seed: int) -> Release:
        nonlocal most
        release = user(seed)
        seen.update(release.update.values())
        most = max(most, len(seen))
        return release

    given_ = (one(seed) for seed in range(6))
    sum_and_noise(given_, 1.0, 0.5, 4.0, keyed(3), LIKE)
    assert next(given_, None) is None
    assert 0 < most <= 2 * len(LIKE), "one being added up, one on its way"


@pytest.mark.parametrize(("field", "change"), [("clip bound", {"bound": 0.0}), ("denominator", {"denominator": 0.0}),
                                               ("noise multiplier", {"noise_multiplier": -1.0}),
                                               ("noise multiplier", {"noise_multiplier": math.nan}), ("rate", {"rate": 0.0}),
                                               ("sampling 'poison'.*'poisson'", {"sampling": "poison"})])  # fmt: skip
def test_bad_numbers_are_named(field: str, change: dict) -> None:
    plain = {"bound": 1.0, "noise_multiplier": 1.0, "denominator": 4.0, "noise": silent, "like": LIKE}
    with pytest.raises(InputError, match=field):
        sum_and_noise([user(0)], **{**plain, **change})


def test_only_hidden_poisson_sampling_is_booked_with_its_rate() -> None:
    assert booked(1.1, "poisson", 0.1) == Event(1.1, rate=0.1, sampling="poisson")
    for sampling in ("all", "fixed"):
        assert booked(1.1, sampling, 0.1) == Event(1.1)
    assert booked(1.1, "poisson", 1.0) == Event(1.1)
    assert sum_and_noise([], 1.0, 1.1, 4.0, silent, LIKE, "poisson", 0.1)[1] == booked(1.1, "poisson", 0.1)


# ------------------------------------------------------------------ the adaptive bound
NORMS = torch.exp(torch.linspace(-1.5, 1.5, 40)).tolist()  # of the users, in every round
TINY: State = {"w": torch.zeros(2)}


def adapted(begin: float, quantile: float, rounds: int = 80) -> list[float]:
    """The bound over rounds, with noise, of users whose norms stay as they are."""
    how, memory, bounds = Adaptive(bit_noise=2.0, quantile=quantile, lr=0.4), start(begin), []
    for number in range(rounds):
        bound = float(memory["bound"])
        cohort = [bounded(Release({"w": torch.tensor([size, 0.0])}, 1.0), bound) for size in NORMS]
        memory, _, event = adaptive_sum_and_noise(memory, cohort, how, 0.5, 40.0, keyed(number), TINY)
        assert event == Event(0.5)
        bounds.append(bound)
    return bounds


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("begin", [0.02, 100.0], ids=["from far below", "from far above"])
def test_the_bound_comes_to_the_quantile_of_the_norms(begin: float, quantile: float) -> None:
    bounds = torch.tensor(adapted(begin, quantile))
    want = float(torch.tensor(NORMS).quantile(quantile))
    assert abs(math.log(bounds[0] / want)) > 2
    assert float(bounds[-25:].log().mean()) == pytest.approx(math.log(want), abs=0.1)


def test_the_noise_is_of_the_bound_that_clipped_and_not_of_the_next_one() -> None:
    how = Adaptive(bit_noise=1.0, lr=2.0)
    memory = start(0.3)
    cohort = [bounded(user(i, 50.0, WIDE), 0.3) for i in range(8)]
    later, release, _ = adaptive_sum_and_noise(memory, cohort, how, 1.3, 8.0, keyed(4), WIDE)
    pre_noise = summed(cohort, 0.3, WIDE)[0]
    assert norm(pre_noise) <= 8 * 0.3
    assert pvalue(release, pre_noise, split(1.3, 1.0) * 0.3) > 1e-7
    assert float(later["bound"]) > 0.5, "it has moved, so the next line can fail"
    for wrong in (split(1.3, 1.0) * float(later["bound"]), 1.3 * 0.3):
        assert pvalue(release, pre_noise, wrong) < 1e-7
    assert float(memory["bound"]) == pytest.approx(0.3)


def test_the_sum_of_bits_has_the_noise_that_was_asked_for_and_a_fixed_denominator() -> None:
    how, moves = Adaptive(bit_noise=0.9, lr=1.0), []
    for number in range(4000):
        later, _, _ = adaptive_sum_and_noise(start(1.0), [], how, 1.0, 10.0, keyed(number), TINY)
        moves.append(-10.0 * math.log(float(later["bound"])))
    assert stats.kstest(moves, "norm", (0, 0.9)).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(moves, "norm", (0, 0.9 * wrong)).pvalue < 1e-7


def test_a_user_moves_the_sum_of_bits_by_half_whatever_the_node_says() -> None:
    for said, want in ((1.0, 0.5), (0.0, -0.5), (9.0, 0.5), (-9.0, -0.5), (math.nan, 0.0)):
        assert summed([replace(user(0), metrics={BIT: said})], 1.0, LIKE)[1] == want
    assert summed([user(0)], 1.0, LIKE)[1] == 0.0
    assert summed([together([user(0, 0.1), user(1, 9.0), user(2, 0.2)], 1.0)], 1.0, LIKE)[1] == 0.5


def test_without_noise_the_bound_moves_by_the_bits_alone() -> None:
    cohort = [bounded(user(i, size), 1.0) for i, size in enumerate((0.5, 2.0, 3.0, 4.0))]
    memory, release, event = adaptive_sum_and_noise(start(1.0), cohort, Adaptive(1.0), 0.0, 4.0, keyed(0), LIKE)
    assert float(memory["bound"]) == pytest.approx(math.exp(0.2 * 0.25))
    assert event == Event(0.0)
    assert all(torch.equal(release.update[n], v.float()) for n, v in summed(cohort, 1.0, LIKE)[0].items())


def test_the_bound_survives_a_checkpoint_bit_for_bit(tmp_path) -> None:
    memory = start(0.1)
    write_state(tmp_path / "memory.safetensors", memory)
    assert torch.equal(read_state(tmp_path / "memory.safetensors")["bound"], memory["bound"])


@pytest.mark.parametrize(("field", "bad"), [("bit_noise", {"bit_noise": 0.0}), ("lr", {"lr": -1.0}), ("quantile", {"quantile": 1.2})])
def test_bad_numbers_of_the_adaptive_bound_are_named(field: str, bad: dict) -> None:
    with pytest.raises(InputError, match=field):
        Adaptive(**{"bit_noise": 1.0, **bad})

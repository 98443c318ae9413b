"""Guarantee U around an aggregator: one noised sum a round, within the budget of a whole run."""

import pytest
import torch
from scipy import stats

from configs.scenario import Scenario, load
from strategies.aggregators.fedavgm import fedavgm
from strategies.base import Release
from strategies.privacy import accounting, joint
from strategies.privacy.events import Event
from strategies.privacy.joint import Cohorts
from strategies.privacy.noise import keyed
from strategies.privacy.user_level import bounded
from strategies.tree import State

COHORTS = {"fixed": Cohorts(40, 12, 10, 12, 1), "cyclic": Cohorts(40, 12, 10, 3, 4), "poisson": Cohorts(40, 12, 10, 12, 1)}
CASES = [("gaussian", "fixed"), ("gaussian", "cyclic"), ("gaussian", "poisson"), ("adaptive", "cyclic"), ("banded", "cyclic")]
SHARED: State = {"x.lora_A.weight": torch.zeros(3, 50), "x.lora_B.weight": torch.zeros(20, 3)}


def scenario(mechanism: str, sampling: str) -> Scenario:
    """User-level privacy over twelve rounds of ten users."""
    return load(
        "movielens", ["privacy=user", f"privacy.user.mechanism={mechanism}", f"sampling={sampling}", "rounds=12", "users_per_round=10"]
    )


def releases(size: float, count: int) -> list[Release]:
    """Users who all send the same."""
    return [Release({name: torch.full_like(value, size) for name, value in SHARED.items()}, 1.0) for _ in range(count)]


@pytest.mark.parametrize(("mechanism", "sampling"), CASES)
def test_a_users_rounds_together_cost_the_budget_and_no_more(mechanism: str, sampling: str) -> None:
    cohorts = COHORTS[sampling]
    plan = joint.plan(scenario(mechanism, sampling), cohorts)
    everyone = joint.payers(plan, ["a"], ["a", "b"]) == ["a", "b"]
    paid = cohorts.rounds if everyone else cohorts.participations
    assert 7.9 < accounting.epsilon([joint.event(plan)] * paid, 1e-5) <= 8.0


@pytest.mark.parametrize(("mechanism", "sampling"), CASES)
def test_one_users_update_moves_a_round_by_the_bound_over_the_fixed_number(mechanism: str, sampling: str) -> None:
    plan = joint.plan(scenario(mechanism, sampling), COHORTS[sampling])
    found = joint.around(fedavgm(0.0), plan, lambda number: keyed(number))
    both = [found.apply(found.init(SHARED), SHARED, releases(9.0, count))[1] for count in (4, 5)]
    moved = sum(float((both[1][n] - both[0][n]).double().square().sum()) for n in SHARED) ** 0.5
    assert moved == pytest.approx(1.0 / 10, rel=1e-3)


@pytest.mark.parametrize(("mechanism", "sampling"), CASES)
def test_a_round_without_users_is_a_round_of_noise_and_one_after_the_last_is_none(mechanism: str, sampling: str) -> None:
    plan = joint.plan(scenario(mechanism, sampling), COHORTS[sampling])
    found = joint.around(fedavgm(0.0), plan, lambda number: keyed(number))
    memory, shared = found.init(SHARED), SHARED
    for number in range(1, 14):
        memory, after = found.apply(memory, shared, [])
        assert any(not torch.equal(after[n], shared[n]) for n in shared) == (number <= 12)
        shared = after


@pytest.mark.parametrize(("mechanism", "sampling"), CASES)
def test_a_round_that_nobody_has_paid_for_moves_nothing_but_the_mechanisms_own_memory(mechanism: str, sampling: str) -> None:
    plan = joint.plan(scenario(mechanism, sampling), COHORTS[sampling])
    found = joint.around(fedavgm(0.9), plan, lambda number: keyed(number), lambda number: number != 2)
    always = joint.around(fedavgm(0.9), plan, lambda number: keyed(number))
    (memory, shared), (other, _) = (each.apply(each.init(SHARED), SHARED, releases(9.0, 3)) for each in (found, always))
    (memory, after), (other, _) = found.apply(memory, shared, []), always.apply(other, shared, [])
    assert all(torch.equal(after[name], shared[name]) for name in shared)
    assert all(torch.equal(memory[name], other[name]) for name in memory if name.startswith("privacy/"))
    assert any(not torch.equal(b, after[name]) for name, b in found.apply(memory, after, [])[1].items())


@pytest.mark.parametrize(("mechanism", "sampling"), [*CASES, ("local", "fixed")])
def test_users_clip_by_the_scenarios_bound_or_where_it_has_moved_to(mechanism: str, sampling: str) -> None:
    asked = scenario(mechanism, sampling)
    found = joint.around(fedavgm(0.0), joint.plan(asked, COHORTS[sampling]), lambda number: keyed(number))
    memory = found.init(SHARED)
    first = joint.bound(asked, memory)
    assert first == (0.0 if mechanism == "local" else asked.privacy.user.clip)
    sent = [bounded(release, first) for release in releases(9.0, 10)] if mechanism == "adaptive" else []
    memory, _ = found.apply(memory, SHARED, sent)
    assert (joint.bound(asked, memory) > 1.05 * first) == (mechanism == "adaptive"), "nobody is within it: up it goes"
    assert joint.bound(load("movielens"), memory if mechanism != "adaptive" else {}) == 0.0


def test_updates_are_clipped_by_the_bound_and_noised_in_its_proportion() -> None:
    plan = joint.plan(scenario("gaussian", "fixed"), COHORTS["fixed"])
    wide: State = {"x.lora_B.weight": torch.zeros(200, 200)}
    found = joint.around(fedavgm(0.0), plan, lambda number: keyed(number))
    drawn = found.apply(found.init(wide), wide, [])[1]["x.lora_B.weight"].double().flatten().numpy() / (plan.noise / 10)
    assert stats.kstest(drawn, "norm").pvalue > 1e-7
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(drawn, "norm", (0, wrong)).pvalue < 1e-7


@pytest.mark.parametrize(("mechanism", "sampling"), CASES)
def test_each_round_has_noise_of_its_own(mechanism: str, sampling: str) -> None:
    found = joint.around(fedavgm(0.0), joint.plan(scenario(mechanism, sampling), COHORTS[sampling]), lambda number: keyed(number))
    memory, first = found.apply(found.init(SHARED), SHARED, [])
    _, second = found.apply(memory, first, [])
    drawn = [torch.cat([(b[n] - a[n]).flatten() for n in SHARED]) for a, b in ((SHARED, first), (first, second))]
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 0.9, "banded noise is correlated, and not the same"


@pytest.mark.parametrize(("mechanism", "sampling"), CASES)
def test_after_a_past_there_is_more_noise_and_the_whole_stays_in_the_budget(mechanism: str, sampling: str) -> None:
    asked, cohorts, spent = scenario(mechanism, sampling), COHORTS[sampling], (Event(2.0, 3),)
    first, second = joint.plan(asked, cohorts), joint.plan(asked, cohorts, spent)
    assert second.noise > 1.05 * first.noise
    assert 7.92 < accounting.epsilon([*spent, *[joint.event(second)] * joint.steps(asked, cohorts)], 1e-5) <= 8.0
    with pytest.raises(accounting.SpentError, match="of epsilon 8 the ledger has spent"):
        joint.plan(asked, cohorts, (Event(0.3),))


@pytest.mark.parametrize(("mechanism", "sampling"), [*CASES, ("local", "fixed"), ("local", "poisson")])
def test_only_coins_that_nobody_sees_amplify_and_only_turns_are_counted(mechanism: str, sampling: str) -> None:
    plan = joint.plan(scenario(mechanism, sampling), COHORTS[sampling])
    hidden = (mechanism, sampling) == ("gaussian", "poisson")
    assert joint.event(plan) == (Event(plan.noise, rate=0.25, sampling="poisson") if hidden else Event(plan.noise))
    assert joint.payers(plan, ["a"], ["a", "b"]) == (["a", "b"] if hidden else ["a"])
    assert joint.steps(plan.scenario, plan.cohorts) == (3 if sampling == "cyclic" else 12)

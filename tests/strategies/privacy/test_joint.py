"""Guarantee U around an aggregator: one noised sum a round, within the budget of a whole run."""

import pytest
import torch

from configs.scenario import Scenario, load
from strategies.aggregators.fedavgm import fedavgm
from strategies.base import Release
from strategies.privacy import accounting, joint
from strategies.privacy.joint import Cohorts
from strategies.privacy.noise import keyed
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
    paid = range(1, (cohorts.rounds if everyone else cohorts.participations) + 1)
    assert 7.9 < accounting.epsilon([joint.event(plan, number) for number in paid], 1e-5) <= 8.0


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

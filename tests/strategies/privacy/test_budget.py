"""A user's budget: what is planned is never less than what any course of the run books, and parts take their shares of it."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.scenario import Scenario, load
from strategies import schemes
from strategies.base import Phase
from strategies.privacy import accounting, budget
from strategies.privacy.events import Event

FEDREP = schemes.build("fedrep", {})
EVERY = ("dual", "fedrep", "fedsa", "local_only", "shared_only")


def scenario(*words: str) -> Scenario:
    """Four guarded rounds of full batches."""
    plain = [
        "privacy=example",
        "rounds=4",
        "personalize=2",
        "shared_training.batch=100",
        "private_training.batch=100",
        "private_from=0",
    ]
    epochs = ["shared_training.epochs=1", "private_training.epochs=3"]
    return load("movielens", [*plain, *epochs, *words])


def booked(asked: Scenario, z: dict[str, float], examples: int, cuts: list[float]) -> list[dict[str, Event]]:
    """What each round's parts cost a user, if these shares of the examples are the earlier ones, round by round."""
    scheme = schemes.build(asked.scheme, {})

    def cost(phase: Phase, seen: int, epochs: int, last: bool = False) -> tuple[str, Event]:
        name = budget.label(phase, last)
        return name, budget.event(z[name], seen, budget.local(asked, phase.name).batch, epochs)

    found: list[dict[str, Event]] = []
    for cut in cuts:
        early = max(1, min(round(cut * examples), examples - 1))  # as a node parts them
        seen = {"all": examples, "support": early, "query": examples - early}
        found.append(dict(cost(p, seen[p.part], budget.local(asked, p.name).epochs) for p in scheme.phases))
    return [*found, dict([cost(scheme.final, examples, asked.personalize, last=True)])] if "final" in z else found


PLAIN = scenario()
CUT = st.floats(*budget.CUTS)
BATCH = st.integers(1, 50)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(examples=st.integers(3, 40), cuts=st.lists(CUT, min_size=4, max_size=4), own=BATCH, common=BATCH, name=st.sampled_from(EVERY))
def test_no_course_of_a_run_takes_more_than_is_planned(examples: int, cuts: list[float], own: int, common: int, name: str) -> None:
    training = {
        f"{block}_training": replace(budget.local(PLAIN, block), batch=b) for block, b in (("shared", common), ("private", own))
    }
    asked = replace(PLAIN, scheme=name, **training)
    scheme = schemes.build(name, {})
    plan = budget.planned(asked, scheme, examples, 4)
    rounds = booked(asked, dict.fromkeys(plan, 1.0), examples, cuts)
    for part, most in plan.items():
        events = [costs[part] for costs in rounds if part in costs]
        assert sum(event.steps for event in events) <= most.steps
        assert max(event.rate for event in events) <= most.rate
    merged = set(budget.together(plan, scheme)) - set(plan)
    assert all(merged <= set(budget.together(costs, scheme)) for costs in rounds if "final" not in costs)


@pytest.mark.parametrize("name", EVERY)
def test_full_batches_use_the_whole_budget(name: str) -> None:
    asked = scenario(f"scheme={name}")
    rounds = booked(asked, budget.noise(asked, 20, 4), 20, [0.5] * 4)
    costs = [cost for parts in rounds for cost in budget.together(parts, schemes.build(name, {})).values()]
    assert 7.99 < accounting.epsilon(costs, 1e-5) <= 8.0


def test_disjoint_phases_cost_a_unit_the_dearer_of_the_two_unless_sampling_leaves_it_open() -> None:
    cheap, dear, last = Event(4.0, 9), Event(1.0, 1), Event(2.0)
    for one, other in ((cheap, dear), (dear, cheap)):
        found = budget.together({"private": one, "shared": other, "final": last}, FEDREP)
        assert found == {"private|shared": dear, "final": last}
    silent = Event(0.0)
    assert budget.together({"private": silent, "shared": dear}, FEDREP) == {"private|shared": silent}, "no noise is the dearest"
    drawn = {"private": replace(cheap, rate=0.5, sampling="poisson"), "shared": dear}
    assert budget.together(drawn, FEDREP) == drawn
    assert budget.together({"shared": dear}, FEDREP) == {"shared": dear}
    both = {"shared": dear, "private": cheap}
    assert budget.together(both, schemes.build("dual", {})) == both, "phases that see the same examples are both paid for"


def test_parts_take_their_shares_of_the_budget_and_no_share_is_an_equal_one() -> None:
    asked = scenario()
    steps = {"shared": 4, "private": 12, "final": 2}

    def taken(words: tuple[str, ...] = ()) -> dict[str, float]:
        z = budget.noise(scenario(*words), 20, 4)
        return {name: steps[name] / z[name] ** 2 for name in steps}

    equal = taken()
    assert equal["private"] == pytest.approx(equal["shared"]) == pytest.approx(equal["final"])
    more = taken(("privacy.example.shares={shared: 4.0, private: 1.0}",))
    assert more["shared"] == pytest.approx(4 * more["private"]) == pytest.approx(4 * more["final"])
    assert sum(more.values()) == pytest.approx(sum(equal.values()), rel=1e-6)
    assert math.isclose(accounting.epsilon([Event(sum(equal.values()) ** -0.5)], 1e-5), asked.privacy.example.epsilon, rel_tol=1e-3)


def test_disjoint_phases_share_what_each_of_them_has() -> None:
    z = budget.noise(scenario("scheme=fedrep", "privacy.example.shares={shared: 2.0, private: 1.0, final: 1.0}"), 20, 4)
    assert 4 / z["shared"] ** 2 == pytest.approx(12 / z["private"] ** 2) == pytest.approx(3 * 2 / z["final"] ** 2)


def test_a_private_adapter_that_joins_in_later_needs_less_noise_and_one_that_never_does_is_no_part() -> None:
    late, always, never = (budget.noise(scenario(f"private_from={n}", "personalize=0"), 20, 4) for n in (3, 0, 4))
    assert late["private"] == pytest.approx(always["private"] / 2, rel=1e-6), "a quarter of the steps"
    assert "private" not in never and never["shared"] < always["shared"]
    alone = budget.noise(scenario("scheme=local_only", "private_from=3", "personalize=0"), 20, 4)
    assert alone["private"] == budget.noise(scenario("scheme=local_only", "personalize=0"), 20, 4)["private"], (
        "it has nobody to wait for"
    )


def test_each_adapter_has_its_own_bound() -> None:
    asked = scenario("privacy.example.shared_clip=0.5", "privacy.example.private_clip=2.5")
    shared, private = schemes.build("dual", {}).phases
    assert (budget.clip(asked, shared), budget.clip(asked, private)) == (0.5, 2.5)

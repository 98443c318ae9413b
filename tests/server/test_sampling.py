"""Who takes part in a round: fixed cohorts, turns, and coins, and in how many rounds anyone does, which privacy is planned for."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import ceil

import pytest

from configs.scenario import Scenario
from server import rounds
from server.sampling import participations, sample, turns

USERS = [f"user{i:02}" for i in range(23)]
SCENARIO = Scenario(rounds=11, users_per_round=5)
SAMPLINGS = ("fixed", "cyclic", "poisson")
CYCLIC, POISSON = replace(SCENARIO, sampling="cyclic"), replace(SCENARIO, sampling="poisson")


def drawn(scenario: Scenario, users: list[str] = USERS) -> list[list[str]]:
    """The users of each of the federation's rounds."""
    return [sample(scenario, users, number) for number in range(1, scenario.rounds + 1)]


@pytest.mark.parametrize(("rounds_", "each"), [(11, 5), (5, 5), (4, 5), (1, 5), (7, 23), (7, 30), (7, 0), (30, 1), (9, 12), (10, 8)])
def test_turns_come_to_everyone_once_before_anyone_twice(rounds_: int, each: int) -> None:
    scenario = replace(CYCLIC, rounds=rounds_, users_per_round=each)
    period, found = turns(scenario, len(USERS)), drawn(scenario)
    assert period == (ceil(23 / each) if 0 < each < 23 else 1)
    for first in range(0, rounds_ - period + 1, period):
        cycle = [user for cohort in found[first : first + period] for user in cohort]
        assert sorted(cycle) == USERS
    assert all(len(cohort) <= (each or 23) for cohort in found)
    for user in USERS:
        numbers = [number for number, cohort in enumerate(found) if user in cohort]
        assert all(later - earlier == period for earlier, later in pairwise(numbers))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("rounds_", "each"), [(11, 5), (5, 5), (1, 5), (7, 0), (12, 12)])
def test_nobody_takes_part_more_often_than_is_planned_for(sampling: str, rounds_: int, each: int) -> None:
    scenario = replace(SCENARIO, sampling=sampling, rounds=rounds_, users_per_round=each)
    most = max(Counter(user for cohort in drawn(scenario) for user in cohort).values())
    planned = participations(scenario, len(USERS))
    assert most <= planned <= rounds_
    if sampling == "cyclic" or not each:
        assert most == planned
    else:
        assert planned == rounds_, "a draw may choose the same user every time"


@pytest.mark.parametrize("scenario", [CYCLIC, POISSON, SCENARIO], ids=["cyclic", "poisson", "fixed"])
def test_plans_say_so_and_the_last_private_round_is_one_more_for_everyone(scenario: Scenario) -> None:
    personal = replace(scenario, personalize=2)
    assert {rounds.plan(personal, {}, number, 23).participations for number in (1, 11, 12)} == {participations(scenario, 23)}
    assert sample(personal, USERS, 12) == USERS
    assert rounds.plan(personal, {}, 12, 23).turns == ("final",)


@pytest.mark.parametrize("scheme", ["dual", "fedsa", "shared_only"])
def test_there_is_a_private_round_only_where_something_is_private(scheme: str) -> None:
    last = rounds.last_round(replace(SCENARIO, scheme=scheme, personalize=2))
    assert last == SCENARIO.rounds + (scheme != "shared_only")


def test_coins_make_cohorts_of_different_sizes_with_the_mean_that_was_asked_for() -> None:
    many = replace(POISSON, rounds=400)
    sizes = [len(cohort) for cohort in drawn(many)]
    assert sum(sizes) / 400 == pytest.approx(5, abs=0.4)  # four standard errors
    variance = sum((size - 5) ** 2 for size in sizes) / 400
    assert variance == pytest.approx(23 * (5 / 23) * (18 / 23), rel=0.35)
    assert min(sizes) <= 1 and max(sizes) >= 9
    count = Counter(user for cohort in drawn(many) for user in cohort)
    assert all(count[user] == pytest.approx(400 * 5 / 23, abs=40) for user in USERS)


def test_coins_of_two_users_and_of_two_rounds_are_independent() -> None:
    found = [set(cohort) for cohort in drawn(replace(POISSON, rounds=400, users_per_round=11))]
    share = 11 / 23
    together = sum({"user00", "user01"} <= cohort for cohort in found) / 400
    again = sum("user00" in a and "user00" in b for a, b in pairwise(found)) / 399
    assert (together, again) == (pytest.approx(share**2, abs=0.1), pytest.approx(share**2, abs=0.1))


@pytest.mark.parametrize("scenario", [CYCLIC, POISSON, SCENARIO], ids=["cyclic", "poisson", "fixed"])
def test_who_takes_part_follows_from_the_seed_and_the_round_and_from_nothing_before(scenario: Scenario) -> None:
    want = drawn(scenario)
    assert drawn(scenario) == want
    assert [sample(scenario, USERS, number) for number in (9, 3)] == [want[8], want[2]], "as in a run that begins again there"
    assert drawn(replace(scenario, seed=1)) != want
    assert all(cohort == sorted(cohort) and len(set(cohort)) == len(cohort) for cohort in want)
    assert len({tuple(cohort) for cohort in want}) > 1


def test_no_users_are_no_rounds_turns() -> None:
    assert turns(CYCLIC, 0) == 1
    assert sample(CYCLIC, [], 1) == []

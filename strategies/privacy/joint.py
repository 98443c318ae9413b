"""Guarantee U around an aggregator: it then sees one noised sum a round, and nothing else of any user.

By the billboard lemma (Hsu, Huang, Roth, Roughgarden & Wu, "Private Matchings and Allocations", STOC 2014, arXiv 1311.2828, lemma 4.1):
if all that is released is (epsilon, delta)-DP in a user's whole data, then so is what anyone else holds, private adapters that were
trained beside it included, as those are made of the releases and of other users' data.

| mechanism | noise | each user pays |
|---|---|---|
| gaussian | z C, independent each round, on the sum | for each round that they may be in |
| adaptive | the same, with a bound C that follows the users' norms | the same |
| banded | correlated over rounds (`matrix`), for users in turns | for each round that they are in |
| local | z C on each user's own release, at home (`local`) | for each round that they may be in |
| gaussian, secure | z S on the sum, in parts that the nodes add under masks (`discrete`) | for each round that they may be in |
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from configs.scenario import Scenario
from strategies.base import Aggregator, Release, released
from strategies.privacy import accounting, matrix, user_level
from strategies.privacy.events import Event
from strategies.privacy.matrix import Banded
from strategies.privacy.noise import Noise
from strategies.tree import State

WHAT = "joint"  # under which name a round is booked
ROUND, BOUND, MEMORY = "privacy/round", "privacy/bound", "privacy/memory/"
BITS = 0.05  # standard deviation of the noise on the users' bits, over the users of a round (Andrew et al., section 3.1)


@dataclass(frozen=True)
class Cohorts:
    """How the users of a run take part, from public numbers alone."""

    users: int
    rounds: int
    expected: int  # users of a round
    participations: int  # of any one user at most
    separation: int  # rounds between two of them at least


@dataclass(frozen=True)
class Plan:
    """The noise of a run, fixed before it begins."""

    scenario: Scenario
    cohorts: Cohorts
    noise: float  # z

    def banded(self) -> Banded:
        """The factorization of the banded mechanism: as many diagonals as there are rounds between two of a user's."""
        return Banded(self.cohorts.rounds, min(self.cohorts.separation, self.cohorts.rounds), self.cohorts.separation)


def plan(scenario: Scenario, cohorts: Cohorts, spent: tuple[Event, ...] = ()) -> Plan:
    """Find the noise multiplier with which a whole run stays in the budget, after what the ledger already holds.

    Raises `accounting.SpentError` where nothing of the budget is left.
    """
    level = scenario.privacy.user
    whole = replace(event(Plan(scenario, cohorts, 1.0)), steps=steps(scenario, cohorts))
    return Plan(scenario, cohorts, accounting.noise_factor((whole,), level.epsilon, level.delta, scenario.privacy.accountant, spent))


def steps(scenario: Scenario, cohorts: Cohorts) -> int:
    """How many of a run's rounds any one user pays for at most."""
    return cohorts.rounds if everyone_pays(scenario) else cohorts.participations


def event(plan: Plan) -> Event:
    """What a round costs each user that pays for it."""
    if plan.scenario.privacy.secure:
        return Event(plan.noise, kind="concentrated")  # `discrete.fit` makes it of whole numbers, at no more cost
    return user_level.booked(plan.noise, _sampling(plan.scenario), plan.cohorts.expected / plan.cohorts.users)


def payers(plan: Plan, chosen: Iterable[str], users: Iterable[str]) -> list[str]:
    """Who pays for a round: those chosen for it, or everyone where nobody sees who is chosen."""
    return list(users if everyone_pays(plan.scenario) else chosen)


def bound(scenario: Scenario, memory: State) -> float:
    """The bound by which the users of the next round clip their releases: the scenario's, or where `around` has moved it to; else 0."""
    if not needed(scenario):
        return 0.0
    return float(memory[BOUND]) if BOUND in memory else scenario.privacy.user.clip


def needed(scenario: Scenario) -> bool:
    """Whether a server plans and books guarantee U: not where users noise their own releases."""
    return scenario.privacy.of_users and scenario.privacy.user.mechanism != "local"


def at_home(scenario: Scenario) -> bool:
    """Whether a user's own node noises the user's releases, and books them."""
    return scenario.privacy.of_users and scenario.privacy.user.mechanism == "local"


def around(inner: Aggregator, plan: Plan, draw: Callable[[int], Noise], paid: Callable[[int], bool] = lambda _: True) -> Aggregator:
    """The same aggregator over one noised sum a round. ``draw(round)`` is where a round's noise comes from.

    A round that nobody has ``paid`` for releases nothing: noise alone would spoil the adapter and protect no one. The memory holds the
    aggregator's own and the mechanism's. That of the banded mechanism is the noise itself: keep it secret.
    """
    level, cohorts = plan.scenario.privacy.user, plan.cohorts

    def init(shared: State) -> State:
        mechanism: State = {ROUND: torch.zeros((), dtype=torch.int64)}
        if level.mechanism == "adaptive":
            mechanism[BOUND] = user_level.start(level.clip)["bound"]
        if level.mechanism == "banded":
            mechanism |= {MEMORY + k: v for k, v in matrix.start(plan.banded(), _like(inner, shared, 1)).items()}
        return {**inner.init(shared), **mechanism}

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        number = int(memory[ROUND]) + 1
        ours = {name: value for name, value in memory.items() if name.startswith("privacy/")}
        own = {name: value for name, value in memory.items() if name not in ours}
        if number <= cohorts.rounds:  # after the rounds, users train alone and release nothing
            ours, release = _noised(ours, releases, number, _like(inner, shared, number))
            releases = [release] if paid(number) else []
        own, shared = inner.apply(own, shared, releases)
        return {**own, **ours, ROUND: torch.tensor(number)}, shared

    def _noised(ours: State, releases: Iterable[Release], number: int, like: State) -> tuple[State, Release]:
        noise, count = draw(number), float(cohorts.expected)
        if level.mechanism == "adaptive":
            how = user_level.Adaptive(max(BITS * count, plan.noise), level.quantile)  # few users: bits cost a quarter
            kept, release, _ = user_level.adaptive_sum_and_noise(
                {"bound": ours[BOUND]}, releases, how, plan.noise, count, noise, like, _sampling(plan.scenario), count / cohorts.users
            )
            return {**ours, BOUND: kept["bound"]}, release
        if level.mechanism == "banded":
            state = {k.removeprefix(MEMORY): v for k, v in ours.items() if k.startswith(MEMORY)}
            state, release, _ = matrix.sum_and_noise(plan.banded(), state, releases, number, level.clip, plan.noise, count, noise, like)
            return {**ours, **{MEMORY + k: v for k, v in state.items()}}, release
        return ours, user_level.sum_and_noise(releases, level.clip, plan.noise, count, noise, like)[0]

    noised_by_users = level.mechanism == "local" or plan.scenario.privacy.secure
    return inner if noised_by_users else inner._replace(init=init, apply=apply, stateful=True)


def _like(inner: Aggregator, shared: State, number: int) -> State:
    return {name: value for name, value in shared.items() if released(name, inner.factors(number))}


def _sampling(scenario: Scenario) -> user_level.Sampling:
    """Coins that nobody sees amplify; whoever gets a user's own release, or asks for one under masks, sees whose turn it is."""
    seen = scenario.privacy.user.mechanism == "local" or scenario.privacy.secure
    hidden = scenario.sampling == "poisson" and scenario.users_per_round and not seen
    return "poisson" if hidden else "all"


def everyone_pays(scenario: Scenario) -> bool:
    """Whether a round costs users who are not chosen for it as well."""
    return _sampling(scenario) == "poisson"

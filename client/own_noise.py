"""A node's side of guarantee U: what each user's release is held to before it leaves, so that one user moves the sum by a bound.

| mechanism | the node | the server |
|---|---|---|
| gaussian, adaptive, banded | clips each user's release to the bound that the task names | noises the sum, and keeps the ledger |
| local | clips, noises and books it: nobody has to be trusted | adds up |
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from configs.errors import InputError
from configs.scenario import Scenario
from strategies.base import Release, Task
from strategies.privacy import joint, local
from strategies.privacy.accounting import unless_spent
from strategies.privacy.joint import Cohorts, Plan
from strategies.privacy.ledger import Ledger, Spend
from strategies.privacy.noise import source
from strategies.privacy.user_level import bounded


def check(scenario: Scenario, task: Task) -> None:
    """Raise `InputError` where a server asks for releases under another bound than the scenario's: only an adaptive one moves."""
    level, moves = scenario.privacy.user, scenario.privacy.user.mechanism == "adaptive"
    if joint.needed(scenario) and not (0 < task.bound < math.inf if moves else task.bound == level.clip):
        wanted = "positive and finite" if moves else f"privacy.user.clip={level.clip:g}"
        raise InputError(f"bound of an order must be {wanted}, got {task.bound:g}")


def clipped(release: Release, task: Task) -> Release:
    """A user's release as a server that noises the sum may have it. Raises `RuntimeError` where the task names no bound."""
    if not release.update:
        return release
    if not task.bound:
        raise RuntimeError("the server asks for releases of users, and names no bound for them")
    return bounded(release, task.bound)


@dataclass
class OwnNoise:
    """The local mechanism: a ledger of this node's users, and where noise comes from. ``keyed`` as in `client.purse.Purse`."""

    scenario: Scenario
    ledger: Ledger
    run: str
    keyed: bool = True
    known: dict[tuple[str, int], Plan | None] = field(default_factory=dict, repr=False)

    def plan(self, user: str, participations: int) -> Plan | None:
        """One user's noise, the same in every round, whatever is booked in between; None where earlier runs have left no budget."""
        key = (user, participations)
        if key not in self.known:
            alone, spent = Cohorts(1, self.scenario.rounds, 1, participations, 1), self.ledger.history(user, besides=self.run)
            self.known[key] = unless_spent(lambda: joint.plan(self.scenario, alone, spent))
        return self.known[key]

    def book(self, task: Task, users: Sequence[str]) -> frozenset[str]:
        """Commit what each user's release of a round costs; returns those whose budget allows it. Only they may release."""
        plans = ((user, self.plan(user, task.participations)) for user in users)
        costs = ((user, joint.event(plan)) for user, plan in plans if plan)
        spends = [Spend(user, self.run, task.round, joint.WHAT, cost, self.keyed) for user, cost in costs]
        level = self.scenario.privacy.user
        return self.ledger.spend_within(spends, level.epsilon, level.delta, self.scenario.privacy.accountant)

    def noised(self, release: Release, task: Task, user: str) -> Release:
        """A user's release with the user's own noise."""
        if not release.update:
            return release
        noise = source(self.keyed, self.scenario.seed, task.round, user, joint.WHAT)
        plan = self.plan(user, task.participations)
        if plan is None:
            raise RuntimeError("a user without a budget has nothing to release")
        return local.privatized(release, self.scenario.privacy.user.clip, plan.noise, noise, release.update)[0]

"""What a server does about guarantee U: it books what a round costs before it asks anyone, and noises the sum."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from configs.scenario import Scenario
from server import sampling
from strategies.base import Aggregator
from strategies.privacy import joint
from strategies.privacy.joint import Cohorts, Plan
from strategies.privacy.ledger import Ledger, Spend
from strategies.privacy.noise import Noise, source


@dataclass(frozen=True)
class Joint:
    """A plan, a ledger, and where noise and the coins of Poisson sampling come from.

    ``keyed``: from the scenario's seed, for a simulation, in which a round that is repeated is the same release. Otherwise from the
    operating system, and a round that is repeated costs again.
    """

    plan: Plan
    ledger: Ledger
    run: str
    keyed: bool = True

    def around(self, aggregator: Aggregator) -> Aggregator:
        """The aggregator over noised sums."""
        return joint.around(aggregator, self.plan, self.draw)

    def draw(self, number: int) -> Noise:
        """The noise of a round."""
        return source(self.keyed, self.plan.scenario.seed, number, joint.WHAT)

    def sample(self, users: Sequence[str], number: int) -> list[str]:
        """The users of a round whose budgets allow it, which is then booked."""
        scenario = self.plan.scenario
        chosen = sampling.sample(scenario, users, number, None if self.keyed else secrets.randbits(63))
        return self.book(number, chosen, users) if number <= scenario.rounds else chosen

    def book(self, number: int, chosen: Sequence[str], users: Sequence[str]) -> list[str]:
        """Commit what a round costs; returns those of ``chosen`` who may take part.

        Where everyone pays for a round, chosen or not, all must be able to, or nobody takes part: who is missing would tell who cannot.
        """
        cost, level = joint.event(self.plan, number), self.plan.scenario.privacy.user
        payers = joint.payers(self.plan, chosen, users)
        spends = [Spend(user, self.run, number, joint.WHAT, cost, self.keyed) for user in payers]
        paid = self.ledger.spend_within(spends, level.epsilon, level.delta, self.plan.scenario.privacy.accountant)
        if joint.everyone_pays(self.plan.scenario) and len(paid) < len(payers):
            return []
        return [user for user in chosen if user in paid]


def open_joint(scenario: Scenario, users: Sequence[str], ledger: Ledger, run: str, keyed: bool = True) -> Joint:
    """Plan a run's noise for its users, after what any of them has spent before."""
    before = {ledger.history(user, besides=run) for user in users}
    plans = [joint.plan(scenario, cohorts(scenario, len(users)), spent) for spent in before]
    return Joint(max(plans, key=lambda plan: plan.noise), ledger, run, keyed)


def cohorts(scenario: Scenario, users: int) -> Cohorts:
    """How so many users take part in a scenario's rounds."""
    expected = min(scenario.users_per_round or users, users)
    apart = sampling.turns(scenario, users) if scenario.sampling == "cyclic" else 1
    return Cohorts(users, scenario.rounds, expected, sampling.participations(scenario, users), apart)

"""What a server does about guarantee U: it books what a round costs before it asks anyone, and noises the sum."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.scenario import Scenario
from server import rounds
from strategies.base import Aggregator
from strategies.privacy import joint
from strategies.privacy.events import Event
from strategies.privacy.joint import Cohorts, Plan
from strategies.privacy.ledger import Ledger, Spend
from strategies.privacy.noise import Noise, entropic, keyed

WHAT = "joint"  # under which name a round is booked


@dataclass(frozen=True)
class Joint:
    """A ledger, a plan, and where noise comes from: ``fresh`` from the operating system, else from the scenario's seed."""

    plan: Plan
    ledger: Ledger
    run: str
    fresh: bool = False

    def around(self, aggregator: Aggregator) -> Aggregator:
        """The aggregator over noised sums."""
        return joint.around(aggregator, self.plan, self.draw)

    def draw(self, number: int) -> Noise:
        """The noise of a round."""
        return entropic() if self.fresh else keyed(self.plan.scenario.seed, number, WHAT)

    def book(self, number: int, chosen: Sequence[str], users: Sequence[str]) -> list[str]:
        """Commit what a round costs; returns those of ``chosen`` who may take part. Where everyone pays, all must be able to."""
        cost, level = joint.event(self.plan, number), self.plan.scenario.privacy.user
        payers = joint.payers(self.plan, chosen, users)
        spends = [Spend(user, self.run, number, WHAT, cost, not self.fresh) for user in payers]
        paid = self.ledger.spend_within(spends, level.epsilon, level.delta, self.plan.scenario.privacy.accountant)
        return [user for user in chosen if user in paid] if len(payers) == len(paid) or payers == list(chosen) else []


def open_joint(scenario: Scenario, users: Sequence[str], ledger: Ledger, run: str, fresh: bool = False) -> Joint:
    """Plan a run's noise for its users, after what any of them has spent before."""
    cohorts = cohorts_of(scenario, len(users))
    before = {ledger.history(user, besides=run) for user in users}
    plans = [joint.plan(scenario, cohorts, spent) for spent in before]
    return Joint(max(plans, key=lambda plan: plan.noise), ledger, run, fresh)


def cohorts_of(scenario: Scenario, users: int) -> Cohorts:
    """How so many users take part in a scenario's rounds."""
    expected = min(scenario.users_per_round or users, users)
    apart = rounds.turns(scenario, users) if scenario.sampling == "cyclic" else 1
    return Cohorts(users, scenario.rounds, expected, rounds.participations(scenario, users), apart)


def costs_so_far(ledger: Ledger) -> tuple[Event, ...]:
    """The history of the user who has paid most steps; () where nobody has."""
    return max(ledger.histories().values(), key=lambda history: sum(event.steps for event in history), default=())

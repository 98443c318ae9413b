"""What a node does about guarantee E: it knows each user's noise, and books what a round costs before the round trains anyone."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from client.dpsgd import Guard
from configs.scenario import Scenario
from strategies.base import Phase, Scheme
from strategies.privacy import budget
from strategies.privacy.accounting import unless_spent
from strategies.privacy.events import Event
from strategies.privacy.ledger import Ledger, Spend
from strategies.privacy.noise import Noise, source


@dataclass
class Purse:
    """A ledger and where noise comes from.

    ``keyed``: from the scenario's seed, for a simulation, in which a round that is repeated is the same release. Otherwise from the
    operating system, and a round that is repeated costs again.
    """

    scenario: Scenario
    ledger: Ledger
    run: str  # under which name costs are booked
    keyed: bool = True
    known: dict[tuple[str, int], dict[str, float] | None] = field(default_factory=dict, repr=False)

    def draw(self, *key: object) -> Noise:
        """The source of one draw."""
        return source(self.keyed, *key)

    def guard(self, phase: Phase) -> Guard:
        """How a phase is guarded."""
        return Guard(budget.clip(self.scenario, phase), self.draw)

    def noise(self, user: str, examples: int, participations: int) -> dict[str, float] | None:
        """Noise multiplier of each part of the run, for one user: the same in every round, whatever is booked in between.

        None where earlier runs have left nothing of the user's budget.
        """
        key = (user, participations)
        if key not in self.known:
            spent = self.ledger.history(user, besides=self.run)
            self.known[key] = unless_spent(lambda: budget.noise(self.scenario, examples, participations, spent))
        return self.known[key]

    def book(self, round_: int, scheme: Scheme, costs: Mapping[str, Mapping[str, Event]]) -> frozenset[str]:
        """Commit what each user's parts of a round cost; returns those whose budget allows it. Only they may train.

        Parts that the guarantee does not cover cost nothing.
        """
        privacy = self.scenario.privacy
        if privacy.guarantee == "unclaimed":
            return frozenset(costs)
        paid = {u: {what: cost for what, cost in parts.items() if budget.covered(self.scenario, what)} for u, parts in costs.items()}
        spends = [
            Spend(user, self.run, round_, what, event, self.keyed)
            for user, parts in paid.items()
            for what, event in budget.together(parts, scheme).items()
        ]
        free = frozenset(user for user, parts in paid.items() if not parts)
        return free | self.ledger.spend_within(spends, privacy.example.epsilon, privacy.example.delta, privacy.accountant)

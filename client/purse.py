"""What a node does about guarantee E: it knows each user's noise, and books what a round costs before the round trains anyone."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from client.dpsgd import Guard
from configs.errors import InputError
from configs.scenario import Scenario
from strategies.base import Phase, Scheme
from strategies.privacy import budget, lives
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
    demand: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # user -> training examples by period, up to this one
    known: dict[tuple[str, int, int], dict[str, float] | None] = field(default_factory=dict, repr=False)

    def own(self, user: str) -> Scenario:
        """The scenario with the budget that a user has in it."""
        return lives.within(self.scenario, self.demand.get(user, ()))

    def payer(self, user: str) -> str:
        """Under which name a user pays."""
        return lives.payer(self.scenario, user)

    def draw(self, *key: object) -> Noise:
        """The source of one draw."""
        return source(self.keyed, *key)

    def guard(self, phase: Phase) -> Guard:
        """How a phase is guarded."""
        return Guard(budget.clip(self.scenario, phase), self.draw)

    def noise(self, user: str, examples: int, participations: int, replayed: int = 0) -> dict[str, float] | None:
        """Noise multiplier of each part of the run, for one user: the same in every round, whatever is booked in between.

        ``replayed``: earlier examples that the private adapter trains on as well. None where earlier runs have left nothing of the
        user's budget.
        """
        key = (user, participations, replayed)
        if key not in self.known:
            if self.payer(user) != user and self.ledger.history(user):
                raise InputError(f"the ledger {self.ledger.path} has booked user '{user}' as a whole; use life.account=sequential")
            spent, own = self.ledger.history(self.payer(user), besides=self.run), self.own(user)
            self.known[key] = unless_spent(lambda: budget.noise(own, examples, participations, spent, replayed))
        return self.known[key]

    def book(self, round_: int, scheme: Scheme, costs: Mapping[str, Mapping[str, Event]]) -> frozenset[str]:
        """Commit what each user's parts of a round cost; returns those whose budget allows it. Only they may train.

        Parts that the guarantee does not cover cost nothing, nor do those that take no step.
        """
        privacy = self.scenario.privacy
        if privacy.guarantee == "unclaimed":
            return frozenset(costs)
        counts = {u: [what for what, cost in parts.items() if cost.steps and budget.covered(self.scenario, what)]
                  for u, parts in costs.items()}  # fmt: skip
        paid = {user: {what: costs[user][what] for what in names} for user, names in counts.items()}
        spends = [
            Spend(self.payer(user), self.run, round_, what, event, self.keyed)
            for user, parts in paid.items()
            for what, event in budget.together(parts, scheme).items()
        ]
        free = frozenset(user for user, parts in paid.items() if not parts)
        return free | self._booked(spends, {self.payer(user): user for user in paid})

    def _booked(self, spends: list[Spend], users: Mapping[str, str]) -> frozenset[str]:
        """Those who can pay, each within their own budget; ``users``: by the names that they pay under."""
        privacy, found = self.scenario.privacy, set()
        budgets = defaultdict(list)
        for spend in spends:
            budgets[self.own(users[spend.user]).privacy.example.epsilon].append(spend)
        for epsilon, asked in budgets.items():
            found |= self.ledger.spend_within(asked, epsilon, privacy.example.delta, privacy.accountant)
        return frozenset(users[name] for name in found)

"""What a server does about guarantee U: it books what a round costs before it asks anyone, and noises the sum."""

import json
import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low

from configs.errors import InputError
from configs.scenario import Scenario
from server import sampling
from strategies.base import Aggregator
from strategies.files import write_text
from strategies.privacy import joint
from strategies.privacy.accounting import SpentError, unless_spent
from strategies.privacy.joint import Cohorts, Plan
from strategies.privacy.ledger import JOINT, Ledger, Spend
from strategies.privacy.noise import Noise, source

log = logging.getLogger("flwr.homing")
PLAN = "plan.json"  # in a run's folder: who takes part in it, and its noise
PATIENCE = 2.0  # times the noise that the median user needs: who has so little left that they need more is left out


@dataclass(frozen=True)
class Joint:
    """A plan, a ledger, and where noise and the coins of Poisson sampling come from.

    ``keyed``: from the scenario's seed, for a simulation, in which a round that is repeated is the same release. Otherwise from the
    operating system, and a round that is repeated costs again.
    """

    plan: Plan
    ledger: Ledger
    run: str
    users: tuple[str, ...]  # that the noise is planned for: nobody else is asked for a release
    keyed: bool = True
    unpaid: set[int] = field(default_factory=set, repr=False)  # rounds that nobody had the budget for

    def around(self, aggregator: Aggregator) -> Aggregator:
        """The aggregator over noised sums."""
        return joint.around(aggregator, self.plan, self.draw, lambda number: number not in self.unpaid)

    def draw(self, number: int) -> Noise:
        """The noise of a round."""
        return source(self.keyed, self.plan.scenario.seed, number, joint.WHAT)

    def sample(self, number: int) -> list[str]:
        """The users of a round whose budgets allow it, which is then booked."""
        return self.book(number, sampling.sample(self.plan.scenario, self.users, number, None if self.keyed else secrets.randbits(63)))

    def book(self, number: int, chosen: Sequence[str]) -> list[str]:
        """Commit what a round costs; returns those of ``chosen`` who may take part.

        Where everyone pays for a round, chosen or not, no coin has a part in who can: each has paid for the same rounds. So that one of
        them is missing tells nothing, and the others' coins and costs stay what they were.
        """
        cost, level = joint.event(self.plan), self.plan.scenario.privacy.user
        payers = joint.payers(self.plan, chosen, self.users)
        spends = [Spend(user, self.run, number, joint.WHAT, cost, self.keyed) for user in payers]
        paid = self.ledger.spend_within(spends, level.epsilon, level.delta, self.plan.scenario.privacy.accountant)
        if not paid:
            self.unpaid.add(number)
        return [user for user in chosen if user in paid]


@contextmanager
def kept(scenario: Scenario, users: Sequence[str], folder: Path, home: Path, run: str, keyed: bool) -> Iterator[Joint | None]:
    """Guarantee U in a run: its plan is in the run's ``folder``, its ledger in ``home``. None where it asks nothing of a server.

    A plan is made once. Whoever comes or goes when the run is resumed, its users and its noise stay.
    """
    if not joint.needed(scenario):
        yield None
        return
    with Ledger(home / JOINT) as ledger:
        if (folder / PLAN).exists():
            users, noise = _planned(folder / PLAN)
            yield Joint(Plan(scenario, cohorts(scenario, len(users)), noise), ledger, run, users, keyed)
            return
        found = open_joint(scenario, users, ledger, run, keyed)
        write_text(folder / PLAN, json.dumps({"users": found.users, "noise": found.plan.noise}))
        yield found


def open_joint(scenario: Scenario, users: Sequence[str], ledger: Ledger, run: str, keyed: bool = True) -> Joint:
    """Plan a run's noise for its users, after what each of them has spent before.

    Who has nothing left, or next to nothing, is left out, and the noise is that of the others. Who that is follows from public numbers
    alone, those of earlier runs' plans. Raises `SpentError` where nobody has anything left.
    """
    before = {user: ledger.history(user, besides=run) for user in users}
    how = cohorts(scenario, len(users))
    plans = {spent: unless_spent(lambda spent=spent: joint.plan(scenario, how, spent)) for spent in set(before.values())}
    noises = {user: plan.noise for user in users if (plan := plans[before[user]])}
    if not noises:
        raise SpentError(f"of privacy.user.epsilon={scenario.privacy.user.epsilon:g} no user has anything left; set a larger one")
    most = PATIENCE * median_low(noises.values())
    able = tuple(user for user, noise in noises.items() if noise <= most)
    if len(able) < len(users):
        log.warning("%d of %d users have too little left of their budget, and are left out", len(users) - len(able), len(users))
        return open_joint(scenario, able, ledger, run, keyed)
    return Joint(Plan(scenario, how, max(noises.values())), ledger, run, able, keyed)


def cohorts(scenario: Scenario, users: int) -> Cohorts:
    """How so many users take part in a scenario's rounds."""
    expected = min(scenario.users_per_round or users, users)
    apart = sampling.turns(scenario, users) if scenario.sampling == "cyclic" else 1
    return Cohorts(users, scenario.rounds, expected, sampling.participations(scenario, users), apart)


def _planned(path: Path) -> tuple[tuple[str, ...], float]:
    try:
        said = json.loads(path.read_text())
        return tuple(map(str, said["users"])), float(said["noise"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be resumed from: {error}") from None

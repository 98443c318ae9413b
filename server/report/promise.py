"""The report's first line: what is promised, to whom, and the number; and that number for `summary.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from configs.home import home
from configs.scenario import Privacy, Scenario
from server.report.guarantees import SIMULATED, listed, words
from strategies.privacy.accounting import epsilons
from strategies.privacy.joint import needed
from strategies.privacy.ledger import JOINT, LEDGER, Booking, Ledger

FILES = {"example": LEDGER, "user": JOINT}
NONE = "Privacy: no guarantee is claimed for this run (training was not noised)."
UNCLAIMED = "Privacy: no guarantee is claimed for this run (some of its training was noised, which by itself protects nobody)."
CLIPPED = "A user's own node is trusted to hold that user's part of its sum to the bound."
COUNTERS = "the training's counters (tokens, examples, loss, steps, seconds)"

Flower = dict[str, Any] | None  # what `deployed` gives


@dataclass(frozen=True)
class Account:
    """What one ledger holds, read against one budget."""

    guarantee: str  # "example" or "user"
    path: Path
    epsilon: float  # the budget
    delta: float
    accountant: str
    spent: dict[str, float]  # user -> epsilon, over all runs
    rounds: dict[str, int]  # user -> in how many rounds they are booked, over all runs
    bookings: tuple[Booking, ...]  # by run

    @property
    def worst(self) -> float:
        """The largest epsilon of any user."""
        return max(self.spent.values(), default=0.0)

    @property
    def median(self) -> float:
        """The median user's."""
        return median(self.spent.values()) if self.spent else 0.0


def account(path: Path, guarantee: str, privacy: Privacy) -> Account:
    """Read a ledger. Raises `InputError` where the file is none."""
    level = privacy.example if guarantee == "example" else privacy.user
    with Ledger(path) as ledger:
        histories, bookings = ledger.histories(), ledger.bookings()
        rounds = ledger.participations()
    costs = epsilons(list(histories.values()), level.delta, privacy.accountant)
    spent = dict(zip(histories, costs, strict=True))
    return Account(guarantee, path, level.epsilon, level.delta, privacy.accountant, spent, rounds, bookings)


def ledgers(scenario: Scenario) -> dict[str, str]:
    """The file of a run's folder that holds what each guarantee, "example" or "user", has cost; {} where none is claimed."""
    claimed = {"example": scenario.privacy.promises_examples, "user": scenario.privacy.of_users}
    return {guarantee: file for guarantee, file in FILES.items() if claimed[guarantee]}


def accounts(scenario: Scenario, directory: Path) -> list[Account]:
    """What a run's ledgers hold, for each guarantee that it claims; [] where none is.

    Those that nodes keep stay there. A server's that noised what it released lies in its home, for all runs.
    """
    flower = deployed(directory)
    for_life = flower and flower["noise"] == "system" and needed(scenario)
    apart = not flower and not any((directory / file).exists() for file in FILES.values())
    here = directory.parent if scenario.life.period and apart else directory  # a life has one ledger for all its periods
    places = {"example": here, "user": home() if for_life else here}
    found = [(guarantee, places[guarantee] / file) for guarantee, file in ledgers(scenario).items()]
    return [account(path, guarantee, scenario.privacy) for guarantee, path in found if path.exists()]


def deployed(directory: Path) -> Flower:
    """Of a run over Flower: ``noise``, the server's, "seed" or "system"; ``simulated``, whether any is the seed's; ``lets``, what nodes
    let out beside releases.
    """
    path = directory / "flower.json"
    return {"noise": "seed", "simulated": True, "lets": [], **json.loads(path.read_text())} if path.exists() else None


def spent(scenario: Scenario, directory: Path) -> dict[str, float]:
    """The largest epsilon that any user's ledger shows, by guarantee, "example" or "user"; {} where none is claimed.

    Of a ledger that is not here, over Flower: the budget that a node, or a server elsewhere, keeps to.
    """
    found = {each.guarantee: each.worst for each in accounts(scenario, directory)}
    budgets = {guarantee: getattr(scenario.privacy, guarantee).epsilon for guarantee in ledgers(scenario)}
    return {**budgets, **found} if deployed(directory) else found


def promise(scenario: Scenario, found: dict[str, float], flower: Flower = None) -> str:
    """One line for a reader who reads no further; ``found`` is what `spent` gives."""
    if scenario.privacy.guarantee == "unclaimed":
        return UNCLAIMED
    lines = []
    for guarantee, epsilon in found.items():
        said, level = words(guarantee, scenario), getattr(scenario.privacy, guarantee)
        rests, uncovered = ("", said.uncovered) if _played(flower) else _rests(guarantee, scenario, said.uncovered)
        number = said.sentence(epsilon, level.delta, at_most=bool(flower))
        lines.append(f"Privacy, {said.title}: {number}. {rests}Not covered: {listed(uncovered)}.")
    return " ".join([*lines, SIMULATED if _played(flower) else _waived(flower)]).strip() if lines else NONE


def _rests(guarantee: str, scenario: Scenario, uncovered: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Who keeps to a number where nodes are real, and what it leaves out: a node's time, and no score that does not leave it."""
    by_server = guarantee == "user" and needed(scenario)
    rests = f"{'The server' if by_server else 'Each node'} keeps to that over all its guarded runs, by a ledger of its own."
    left = tuple(said for said in uncovered if said != "scores and controls")
    return f"{rests} {CLIPPED + ' ' if by_server else ''}", (*left, "how long a node takes", "whether it answers")


def _waived(flower: Flower) -> str:
    lets = flower["lets"] if flower else []
    waived = [said for name, said in (("scores", "the scores below"), ("counters", COUNTERS)) if name in lets]
    return f"Waived in the scenario, and let out without noise: {' and '.join(waived)}." if waived else ""


def _played(flower: Flower) -> bool:
    return flower is None or flower["simulated"]

"""The report's first line: what is promised, to whom, and the number; and that number for `summary.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from configs.scenario import Privacy, Scenario
from server.report.guarantees import SIMULATED, listed, words
from strategies.privacy.accounting import epsilons
from strategies.privacy.ledger import LEDGER, Booking, Ledger

JOINT = "joint.sqlite"  # in a run's folder: the ledger of guarantee U
FILES = {"example": LEDGER, "user": JOINT}
NONE = "Privacy: no guarantee is claimed for this run (training was not noised)."
UNCLAIMED = "Privacy: no guarantee is claimed for this run (some of its training was noised, which by itself protects nobody)."
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
    """What a run's ledgers hold, for each guarantee that it claims; [] where none is."""
    found = [(guarantee, directory / file) for guarantee, file in ledgers(scenario).items()]
    return [account(path, guarantee, scenario.privacy) for guarantee, path in found if path.exists()]


def deployed(directory: Path) -> Flower:
    """Of a run over Flower: ``simulated``, whether any node was only played, and ``lets``, what nodes let out beside releases."""
    path = directory / "flower.json"
    return {"simulated": True, "lets": [], **json.loads(path.read_text())} if path.exists() else None


def spent(scenario: Scenario, directory: Path) -> dict[str, float]:
    """The largest epsilon that any user's ledger shows, by guarantee, "example" or "user"; {} where none is claimed.

    Over Flower the ledgers of guarantee E stay with the nodes: the budget that each of them keeps to.
    """
    found = {each.guarantee: each.worst for each in accounts(scenario, directory)}
    return {"example": scenario.privacy.example.epsilon, **found} if "example" in ledgers(scenario) and deployed(directory) else found


def promise(scenario: Scenario, found: dict[str, float], flower: Flower = None) -> str:
    """One line for a reader who reads no further; ``found`` is what `spent` gives."""
    if scenario.privacy.guarantee == "unclaimed":
        return UNCLAIMED
    lines = []
    for guarantee, epsilon in found.items():
        said, level = words(guarantee, scenario), getattr(scenario.privacy, guarantee)
        beside = _beside(flower) if guarantee == "example" and not _played(flower) else f"Not covered: {listed(said.uncovered)}."
        lines.append(f"Privacy, {said.title}: {said.sentence(epsilon, level.delta, at_most=bool(flower))}. {beside}")
    return " ".join([*lines, *([SIMULATED] if _played(flower) else [])]) if lines else NONE


def _beside(flower: Flower) -> str:
    """What guarantee E leaves out where nodes are real, and what it rests on."""
    lets = flower["lets"] if flower else []
    waived = [said for name, said in (("scores", "the scores below"), ("counters", COUNTERS)) if name in lets]
    said = f" Waived in the scenario, and let out without noise: {' and '.join(waived)}." if waived else ""
    return (
        "Each node keeps to that over all its guarded runs, by a ledger of its own. Not covered: how many examples there are, and how "
        f"long a node takes.{said}"
    )


def _played(flower: Flower) -> bool:
    return flower is None or flower["simulated"]

"""The study: every registered aggregator against rounds, skew, users, rank, sizes of users and an attacker, over seeds."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from configs.errors import InputError, unknown
from simulations.synthetic.federation import LOST, Round, federate
from simulations.synthetic.task import A, Setting, start, task
from strategies import aggregators
from strategies.aggregators import AGGREGATORS
from strategies.base import Aggregator

ROUNDS, SEEDS = 20, 3
BASE = Setting()
CROWD = Setting(users=16, skew=0.25)  # with an attacker among them: enough users that a trimmed mean leaves somebody out
AXES: dict[str, tuple[Setting, tuple[float, ...]]] = {
    "skew": (BASE, (0.0, 0.25, 0.5, 1.0)),
    "users": (BASE, (2, 4, 8, 16, 32)),
    "rank": (BASE, (1, 2, 4, 8)),
    "uneven": (BASE, (0.0, 1.0)),
    "attackers": (CROWD, (0, 1, 10)),
}
TENSORS = ("lora_A", "lora_B", "lora_delta")  # what this task's shared adapter can hold
FLOWERS = (
    "Flower's own classes average arrays and know nothing of factors; theirs are the rules of fedit, fedavgm, fedadam, krum and so on"
)


@dataclass(frozen=True)
class Outcome:
    """One federation from its start to its end."""

    rounds: tuple[Round, ...]
    floor: float  # the excess of the best B for the A of the start

    @property
    def error(self) -> float:
        """Of all aggregations together, against what the ideal ones change."""
        return self.relative("error")

    @property
    def excess(self) -> float:
        """After the last round; `LOST` for one that has diverged."""
        return min(self.rounds[-1].excess, LOST)

    def relative(self, measure: str) -> float:
        """The root of the summed squares of a measure over that of the changes."""
        changed = math.fsum(row.change**2 for row in self.rounds)
        return (math.fsum(getattr(row, measure) ** 2 for row in self.rounds) / changed) ** 0.5


Found = dict[tuple[str, Setting], list[Outcome]]  # an outcome per seed


def settings() -> dict[tuple[str, float], Setting]:
    """Every point of every axis."""
    return {(axis, at): replace(base, **{axis: at}) for axis, (base, values) in AXES.items() for at in values}


def chosen(only: str = "") -> dict[str, Aggregator]:
    """The aggregators of the study by name, with their default options. Raises `InputError` for one that is unknown or left out."""
    if only and only not in AGGREGATORS:
        raise unknown("aggregator", only, AGGREGATORS)
    built = {name: aggregators.build(name, {}) for name in ([only] if only else AGGREGATORS)}
    if only and (reason := why_not(built[only])):
        raise InputError(f"--only: '{only}' is left out: {reason}")
    return {name: aggregator for name, aggregator in built.items() if not why_not(aggregator)}


def left_out() -> dict[str, str]:
    """The others, with the reason."""
    reasons = {name: why_not(aggregators.build(name, {})) for name in AGGREGATORS}
    return {name: reason for name, reason in reasons.items() if reason} | {f"{aggregators.FLOWER}*": FLOWERS}


def why_not(aggregator: Aggregator) -> str:
    """Why an aggregator makes no sense here; empty where it does."""
    if aggregator.phases > 1 or aggregator.per_user_down:
        return "more than one exchange in a round, or another answer to each user"
    others = sorted({*aggregator.carried, *aggregator.factors(1), *aggregator.factors(2)} - {*TENSORS})
    return f"users here keep no {' or '.join(others)}" if others else ""


def run(rounds: int = ROUNDS, seeds: int = SEEDS, only: str = "", done: Callable[[str, int, int], None] = lambda *_: None) -> Found:
    """Run every aggregator in every setting. ``done(name, at, of)`` is called after each aggregator."""
    found: Found = {}
    for at, (name, aggregator) in enumerate((known := chosen(only)).items(), 1):
        for setting in dict.fromkeys(settings().values()):
            found[name, setting] = [outcome(aggregator, setting, seed, rounds) for seed in range(seeds)]
        done(name, at, len(known))
    return found


def outcome(aggregator: Aggregator, setting: Setting, seed: int, rounds: int) -> Outcome:
    """One federation."""
    floor = task(setting, seed).floor(start(setting, seed, ())[A])
    return Outcome(tuple(federate(aggregator, setting, seed, rounds)), floor)


def rounds_of(found: Found) -> int:
    """The rounds of a study: those of its longest federation, as one that diverges ends early."""
    return max(len(outcome.rounds) for outcomes in found.values() for outcome in outcomes)


def seeds_of(found: Found) -> int:
    """The seeds of a study."""
    return len(next(iter(found.values())))

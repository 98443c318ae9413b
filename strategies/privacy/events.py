"""What one use of private data costs, before any epsilon is worked out: the only thing that ledgers keep and accountants read."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, order=True)
class Event:
    """``steps`` times one mechanism: a sum to which every unit adds at most a vector of norm S, and noise for it.

    Neighbours: one unit adds nothing instead of its vector (zero-out); how many units there are is not hidden. With ``fixed`` sampling:
    one unit is replaced by another.
    """

    noise: float  # standard deviation of the noise / S; 0: none, which no epsilon bounds
    steps: int = 1
    rate: float = 1.0  # share of the units that take part in a step, where nobody learns which
    sampling: Literal["all", "poisson", "fixed"] = "all"  # each unit by its own coin, or a fixed number without replacement
    kind: Literal["gaussian", "concentrated"] = "gaussian"  # concentrated: all that is known is 1/(2 noise^2)-zCDP a step

    def __post_init__(self) -> None:
        if not (self.noise >= 0 and self.steps >= 0 and 0 < self.rate <= 1):
            raise ValueError(f"no such event: {self}")


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same history with the steps of equal mechanisms added up, sorted: composition does not depend on order."""
    steps: Counter[tuple[Any, ...]] = Counter()
    for event in events:
        if event.steps:
            steps[event.noise, event.rate, event.sampling, event.kind] += event.steps
    return tuple(sorted(Event(noise, count, *rest) for (noise, *rest), count in steps.items()))

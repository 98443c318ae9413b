"""The life of a federation: its data comes in periods, and what was learnt in one is to last through the next."""

import math
from dataclasses import dataclass, field
from typing import Literal

from configs.errors import InputError


@dataclass(frozen=True)
class Life:
    """How a user's examples, in order of time, are cut into periods, and what becomes of a private adapter from one to the next."""

    periods: int = 0  # how many; 0: all data is there at once
    period: int = 0  # the one that a run is of, counted from 1; 0: none yet
    by: Literal["examples", "time"] = "examples"  # equal counts of each user's examples, or equal spans of time, the same for all users
    start: float = 0.0  # by time: where the first period begins, in the data's own unit of time; start = end: the data's first and last
    end: float = 0.0  # and where the last one ends; what lies outside belongs to the nearest period
    keep: str = "sequential"  # a registered way to keep what was learnt: strategies/keeping
    keep_options: dict[str, float] = field(default_factory=dict)
    spread: Literal["uniform", "decaying", "demand"] = "uniform"  # of guarantee E's budget over the periods
    train: Literal["always", "drift"] = "always"  # what is private: in each period, or where a user's data has changed
    detector: str = "paired"  # of a change: strategies/drift.py
    detector_options: dict[str, float] = field(default_factory=dict)
    account: Literal["sequential", "partition"] = "sequential"  # partition: an example costs the one period that it is trained in

    def __post_init__(self) -> None:
        for name, ok, rule in (
            ("periods", self.periods == 0 or self.periods >= 2, "0 (none) or 2 and more"),
            ("period", self.period >= 0, "0 or more"),
            ("start", math.isfinite(self.start), "finite"),
            ("end", math.isfinite(self.end) and self.end >= self.start, "finite and at least life.start"),
        ):
            if not ok:
                raise InputError(f"life.{name} must be {rule}, got {getattr(self, name)!r}")

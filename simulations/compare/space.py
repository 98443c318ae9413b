"""What a study's ``sweep`` asks for: settings to be found for each line, and how they are judged.

sweep:
  settings:
    shared_training.lr: {low: 0.0001, high: 0.1, log: true}   # a range; of whole numbers where both ends are
    private.rank: [2, 4, 8]                                   # one of these
  trials: 20            # of each line: every method is tuned alike
  metric: nll           # on the validation split: nll, auc, accuracy or f1
  seed: 100             # none of the study's
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import InputError, unknown

HIGHER = {"nll": False, "auc": True, "accuracy": True, "f1": True}  # is more better?
KEYS = ("settings", "trials", "metric", "seed")
DIGITS = ".3g"  # of a number that is drawn: what is shown is what was run


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Sweep:
    """A search over settings, the same for every line of a study."""

    settings: Mapping[str, Range | tuple[Any, ...]]  # a scenario's key -> where its value lies
    trials: int = 20
    metric: str = "nll"
    seed: int = 100  # of every trial's run, and of what is drawn

    def corners(self) -> list[str]:
        """Every setting at each end of its range, or at each of its choices, one at a time: whether a scenario takes them."""
        return [
            assigned(name, value)
            for name, space in self.settings.items()
            for value in ((space.low, space.high) if isinstance(space, Range) else space)
        ]


def read(where: str, tree: Any, seeds: tuple[int, ...]) -> Sweep | None:
    """The sweep of a study file with these seeds; None where it has none. Raises `InputError` for what makes no sense."""
    if tree is None:
        return None
    if not isinstance(tree, Mapping) or not isinstance(tree.get("settings"), Mapping) or not tree["settings"]:
        raise InputError(f"{where}: sweep must hold settings, each with a range like {{low: 0.001, high: 0.1}} or a list of values")
    for key in tree:
        if key not in KEYS:
            raise unknown(f"key in {where}, sweep:", str(key), KEYS)
    found = Sweep(
        {str(name): _space(f"{where}: sweep.settings.{name}", space) for name, space in tree["settings"].items()},
        **{key: tree[key] for key in KEYS[1:] if key in tree},
    )
    for key, least in (("trials", 1), ("seed", 0)):
        value = getattr(found, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{where}: sweep.{key} must be a whole number, {least} or more, got {value!r}")
    if found.metric not in HIGHER:
        raise unknown(f"metric in {where}, sweep.metric:", str(found.metric), HIGHER)
    if found.seed in seeds:
        raise InputError(f"{where}: sweep.seed {found.seed} is one of the study's seeds; settings must be found on another")
    return found


def assigned(name: str, value: Any) -> str:
    """A setting as it is written: ``name=value``."""
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"


def rounded(value: float, space: Range) -> float:
    """A drawn number with as few digits as it is shown with, still within its range."""
    return value if isinstance(value, int) else min(max(float(format(value, DIGITS)), space.low), space.high)


def _space(where: str, value: Any) -> Range | tuple[Any, ...]:
    if isinstance(value, list) and value and all(isinstance(item, str | int | float) for item in value):
        return tuple(value)
    wrong = InputError(f"{where} must be a range like {{low: 0.001, high: 0.1, log: true}} or a list of values, got {value!r}")
    if not isinstance(value, Mapping) or not {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        raise wrong
    low, high, log = value["low"], value["high"], value.get("log", False)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in (low, high))
    if not numbers or not isinstance(log, bool):
        raise wrong
    if low >= high or (log and low <= 0):
        raise InputError(f"{where}: low must be below high, and above 0 where log is true, got {low} and {high}")
    return Range(low, high, log)

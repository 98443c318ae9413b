"""Fair timing of two or more ways to do the same work, and the proof that it was the same."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from strategies.tree import State, norm, subtract

TOLERANCE = 1e-2  # of the distance moved: AdamW turns float32's rounding of tiny gradients into 1e-4 to 1e-3 of it


class DifferentWorkError(RuntimeError):
    """The two sides of a benchmark did not compute the same thing: their times must not be compared."""


@dataclass(frozen=True)
class Figure:
    """One line of bench.json. A ratio above 1 means that ours is the better one."""

    ours: float
    theirs: float
    unit: str
    higher_is_better: bool = False

    @property
    def ratio(self) -> float:
        """How many times better ours is."""
        return self.ours / self.theirs if self.higher_is_better else self.theirs / self.ours


class Result(NamedTuple):
    """What a side computed: each user's adapters after training, and the mean loss on the way, in nats."""

    states: list[State]
    loss: float


def alternate(sides: Mapping[str, Callable[[], object]], repetitions: int,
              clock: Callable[[], float] = time.process_time) -> dict[str, float]:  # fmt: skip
    """Median seconds of each side, taken in turns in this process after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for lap in range(repetitions + 1):
        for name, side in sides.items():
            gc.collect()
            began = clock()
            side()
            if lap:
                seconds[name].append(clock() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, as long as CPU time is measured: threads that wait for each other spin, which would count as work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def agree(ours: Result, theirs: Result, starts: Sequence[State], tolerance: float = TOLERANCE) -> float:
    """The largest distance between a user's two results, as a share of how far they moved.

    Raises `DifferentWorkError` where that or the losses show that the sides did not do the same work.
    """
    if len(ours.states) != len(theirs.states) or not ours.states:
        raise DifferentWorkError(f"{len(ours.states)} users on our side, {len(theirs.states)} on theirs")
    if not abs(ours.loss - theirs.loss) <= 1e-3 * abs(theirs.loss):  # so that NaN is caught as well
        raise DifferentWorkError(f"mean loss {ours.loss:.6f} on our side, {theirs.loss:.6f} on theirs")
    worst = max(_distance(a, b, s) for a, b, s in zip(ours.states, theirs.states, starts, strict=True))
    if not worst <= tolerance:
        raise DifferentWorkError(f"the adapters differ by {worst:.3g} of the distance moved (allowed: {tolerance:.3g})")
    return worst


def mean_state(states: Sequence[State]) -> State:
    """The plain mean of states."""
    return {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}


def _distance(ours: State, theirs: State, start: State) -> float:
    if ours.keys() != theirs.keys():
        raise DifferentWorkError(f"the sides trained different tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    moved = norm(subtract(theirs, {n: start[n] for n in theirs}))
    if moved == 0:
        raise DifferentWorkError("their side did not train at all")
    return norm(subtract(ours, theirs)) / moved

"""Every aggregator's step at a server: its seconds at several numbers of users, how they grow, and the memory of a stream."""

import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from configs.errors import unknown
from server.report.tables import markdown_rows
from simulations.bench.measure import one_thread
from simulations.cost import memory
from simulations.cost.crowd import Shape, adapter, releases
from simulations.cost.work import counted
from strategies import aggregators
from strategies.aggregators import AGGREGATORS
from strategies.base import Aggregator
from strategies.files import write_text

SHAPE = Shape(modules=4, outputs=24, inputs=256, rank=8)  # of what is timed: sums of products soon have all ranks
GROWTH = 1.1  # the largest exponent of work that is still called linear
LIMIT = 2**30  # bytes


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    users: tuple[int, ...] = (50, 100, 200, 400)  # of each timed step
    repetitions: int = 3
    streamed: int = 1000  # users of the stream
    release: int = 5 * 2**20  # bytes of each


QUICK = Size((4, 8), 1, 20, 2**20)


@dataclass(frozen=True)
class Cost:
    """One aggregator's."""

    linear: bool
    pairwise: bool
    seconds: tuple[float, ...]  # of a step, the least of all repetitions, at each number of users
    work: tuple[int, ...]  # what there is to compute in it: `simulations.cost.work`
    exponent: float  # b of seconds ~ users^b
    growth: float  # b of work ~ users^b: what is judged, as caches and other processes have no part in it
    peak: int | None = None  # bytes; None: not measured, as it needs each user's own release
    stream_seconds: float | None = None  # of a CPU, making the releases included


def run(size: Size, only: str = "", done: Callable[[dict[str, Cost]], None] = lambda _: None) -> dict[str, Cost]:
    """Measure all, or the one of that name. ``done`` is called with all so far after each."""
    found: dict[str, Cost] = {}
    for name in chosen(only):
        built = aggregators.build(name, {})
        work, took = steps(built, size, size.users)
        stream = memory.in_process(name, size.streamed, size.release) if built.linear else {}
        slower, growth = (exponent(size.users, each) for each in (took, work))
        found[name] = Cost(built.linear, built.pairwise, took, work, slower, growth, stream.get("peak"), stream.get("seconds"))
        done(found)
    return found


def chosen(only: str) -> list[str]:
    """The aggregators to measure. Raises `InputError` for an unknown one."""
    if only and only not in AGGREGATORS:
        raise unknown("aggregator", only, AGGREGATORS)
    return [only] if only else list(AGGREGATORS)


def steps(aggregator: Aggregator, size: Size, users: Sequence[int], shape: Shape = SHAPE) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Work, and CPU seconds of one thread, of a step at each number of users."""
    shared = adapter(aggregator, shape)
    everyone = list(releases(aggregator, shared, max(users)))
    memory = aggregator.init(shared)

    def step(count: int) -> None:
        aggregator.apply(memory, shared, iter(everyone[: count + aggregator.rooted]))

    with one_thread(), torch.no_grad():
        work = [counted(partial(step, count)) for count in users]
        laps = [[seconds(partial(step, count)) for count in users] for _ in range(size.repetitions)]
    return tuple(work), tuple(min(lap) for lap in zip(*laps, strict=True))


def seconds(do: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    gc.collect()
    began = time.process_time()
    do()
    return time.process_time() - began


def exponent(users: Sequence[int], cost: Sequence[float]) -> float:
    """The slope of the logarithm of a cost over that of the users, by least squares."""
    return statistics.linear_regression([math.log(u) for u in users], [math.log(max(c, 1e-9)) for c in cost]).slope


def failures(found: Mapping[str, Cost]) -> Iterator[str]:
    """What is not as an aggregator says, a sentence each."""
    for name, cost in found.items():
        if (cost.growth > GROWTH) != cost.pairwise:
            said = "says" if cost.pairwise else "does not say"
            yield f"{name}: its work grows like users^{cost.growth:.2f}, and it {said} pairwise"
        if cost.peak is not None and cost.peak > LIMIT:
            yield f"{name}: {cost.peak / 2**20:.0f} MiB at most, above {LIMIT / 2**20:.0f}"


def write(found: Mapping[str, Cost], size: Size, folder: Path) -> None:
    """Write `cost.json` and `cost.md`."""
    tree = {"size": asdict(size), "shape": SHAPE._asdict(), "aggregators": {name: asdict(cost) for name, cost in found.items()}}
    write_text(folder / "cost.json", json.dumps(tree, indent=1) + "\n")
    write_text(folder / "cost.md", markdown(found, size))


def markdown(found: Mapping[str, Cost], size: Size) -> str:
    """The table."""
    stream = f"{size.streamed} x {size.release / 2**20:g} MiB"
    head = (
        "aggregator",
        "says",
        *(f"{users} users, ms" for users in size.users),
        "exponent",
        "of work",
        f"{stream}: peak MiB",
        "seconds",
    )
    return "\n".join(markdown_rows(head, (_cells(name, cost) for name, cost in found.items()), 2)) + "\n"


def _cells(name: str, cost: Cost) -> tuple[str, ...]:
    says = ", ".join(word for word in ("linear", "pairwise") if getattr(cost, word))
    stream = ("", "") if cost.peak is None else (f"{cost.peak / 2**20:.0f}", f"{cost.stream_seconds:.1f}")
    return (name, says, *(f"{1e3 * s:.1f}" for s in cost.seconds), f"{cost.exponent:.2f}", f"{cost.growth:.2f}", *stream)

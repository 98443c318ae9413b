"""Simulate a day of rounds over devices of several classes that are there by day and by night.

A device is available (idle, charging, on a network without cost) with a chance that goes round with its local time. Between the worst
and the best hour lies a factor of four, 6 to 10 % of the asked drop out, and the server asks 130 % of those that it needs: Bonawitz et
al., "Towards Federated Learning at Scale: System Design", MLSys 2019, arXiv 1902.01046, section 9. A round ends with the answer of the
last device that is needed, or at its deadline. Devices are drawn by class, so that a day of 10^6 of them takes a second.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAY = 86_400.0
FLOATS = 4  # bytes of a number


@dataclass(frozen=True)
class Class:
    """Devices of one kind."""

    name: str
    share: float  # of all devices
    speed: float  # tokens that are trained in a second
    down: float  # megabits a second
    up: float
    best: float  # chance to be there in the best hour


@dataclass(frozen=True)
class Assumed:
    """What a day is made of."""

    devices: int = 1_000_000
    numbers: int = 1_000_000  # of the shared adapter
    goal: int = 1_000  # answers that a round needs
    over: float = 1.3  # so many times as many are asked
    tokens: int = 20_000  # that a device trains in a round
    start: float = 20.0  # seconds before it trains: the base model is read
    drop: float = 0.08  # share of the asked that never answer
    deadline: float = 1_800.0  # seconds
    between: float = 15.0  # seconds from a round's end to the next one's start
    swing: float = 4.0  # of availability, from the worst hour to the best
    width: int = FLOATS  # bytes of a number on the wire
    classes: tuple[Class, ...] = (
        Class("phone", 0.80, 60.0, 50.0, 10.0, 0.08),
        Class("tablet or laptop", 0.15, 300.0, 80.0, 20.0, 0.05),
        Class("desktop with a GPU", 0.05, 6_000.0, 200.0, 40.0, 0.10),
    )
    zones: tuple[tuple[float, float], ...] = ((-5.0, 0.3), (1.0, 0.4), (8.0, 0.3))  # hours from UTC, share of the devices


@dataclass(frozen=True)
class Round:
    """One round of the day."""

    began: float  # seconds of the day
    there: int  # devices that were available
    asked: int
    answered: int  # by the end of the round, at most the goal
    seconds: float


def available(assumed: Assumed, second: float) -> NDArray[np.float64]:
    """Expected devices of each class that are there at a second of the day, [C]. Nights (3 h local time) are best."""
    low = 1 / assumed.swing
    there = [
        share * (low + (1 - low) * (1 + math.cos(2 * math.pi * (second / 3600 + zone - 3) / 24)) / 2) for zone, share in assumed.zones
    ]
    return np.array([assumed.devices * c.share * c.best * sum(there) for c in assumed.classes])


def answers(assumed: Assumed, kinds_N: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.float64]:
    """Seconds after which each asked device answers, [N]; infinite for one that drops out. Devices of a class differ log-normally."""
    bits = 8e-6 * assumed.numbers * assumed.width  # megabits, either way
    usual = np.array([assumed.start + bits / c.down + assumed.tokens / c.speed + bits / c.up for c in assumed.classes])
    spread = draw.lognormal(0.0, 0.4, len(kinds_N))
    return np.where(draw.random(len(kinds_N)) < assumed.drop, np.inf, usual[kinds_N] * spread)


def rounds(assumed: Assumed, seed: int = 0) -> list[Round]:
    """The rounds that begin within a day."""
    draw, found, now = np.random.default_rng(seed), list[Round](), 0.0
    while now < DAY:
        there_C = draw.poisson(available(assumed, now))
        asked = min(math.ceil(assumed.goal * assumed.over), int(there_C.sum()))
        kinds_N = np.repeat(np.arange(len(there_C)), draw.multivariate_hypergeometric(there_C, asked))
        seconds_N = np.sort(answers(assumed, kinds_N, draw))
        end = min(assumed.deadline, float(seconds_N[assumed.goal - 1]) if asked >= assumed.goal else math.inf)
        found.append(Round(now, int(there_C.sum()), asked, min(assumed.goal, int((seconds_N <= end).sum())), end))
        now += end + assumed.between
    return found


def memory(assumed: Assumed, at_once: int = 64) -> dict[str, float]:
    """Megabytes that the server holds: the adapter, a running sum, releases that are read at the same moment, a ledger's cache."""
    release = assumed.numbers * FLOATS / 1e6
    return {
        "shared adapter and a running sum": 3 * release,
        f"{at_once} releases that are read at once": at_once * assumed.numbers * assumed.width / 1e6,
        "participations of all users": assumed.devices * 24 / 1e6,
    }


def totals(assumed: Assumed, found: Sequence[Round]) -> dict[str, float]:
    """What a day comes to."""
    release = assumed.numbers * assumed.width
    full = [r for r in found if r.answered >= assumed.goal]
    asked = sum(r.asked for r in found)
    return {
        "rounds a day": len(found),
        "of them with all answers": len(full),
        "median round, s": float(np.median([r.seconds for r in found])),
        "slowest round, s": max(r.seconds for r in found),
        "devices there, worst moment": min(r.there for r in found),
        "devices there, best moment": max(r.there for r in found),
        "GB down a day": asked * release / 1e9,
        "GB up a day": sum(r.answered for r in found) * release / 1e9,
        "times a device is asked a day": asked / assumed.devices,
        "days until everybody was asked once": assumed.devices / asked if asked else math.inf,
        "MB at the server": sum(memory(assumed).values()),
    }

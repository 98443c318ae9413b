"""What a round costs the ledger: it books every user and works out what each one's own history comes to."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from configs.errors import InputError
from simulations.bench.measure import Figure, alternate
from simulations.bench.world import Size
from strategies.privacy.events import Event
from strategies.privacy.ledger import Ledger, Spend

AIM = 1.0  # seconds of a round with `USERS`
USERS = 10_000
EPSILON, DELTA = 8.0, 1e-5
Steps = Callable[[int, int], Event]  # user, steps -> a cost that no other user has


def rounds(name: str, size: Size, repetitions: int) -> dict[str, Figure]:
    """CPU seconds of a round in which no two users have the same history; theirs is the second that it may take.

    ``size.users`` take part. Poisson: users of 100 examples and more, in the midst of their budget, each with a rate of their own.
    """
    found = {}
    for key, cost in ((name, whole), (f"{name}_poisson", poisson)):
        with tempfile.TemporaryDirectory(prefix="homing-bench-") as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
            laps = iter(range(repetitions + 2))
            book(ledger, cost, size.users, next(laps))
            seconds = alternate({"ours": lambda c=cost, k=ledger, n=laps: book(k, c, size.users, next(n))}, repetitions)
        found[key] = Figure(seconds["ours"], AIM, "CPU s per round")
    return found


def book(ledger: Ledger, cost: Steps, users: int, round_: int) -> float:
    """Book a round, in which everyone must stay within; returns seconds."""
    began = time.perf_counter()
    spends = [Spend(str(user), "bench", round_, "both", cost(user, 1 + user % 7), True) for user in range(users)]
    if len(ledger.spend_within(spends, EPSILON, DELTA)) < users:
        raise InputError("bench: a user of the ledger's benchmark has no budget left")
    return time.perf_counter() - began


def whole(user: int, steps: int) -> Event:
    """Steps in which all of a user's examples take part."""
    return Event(16 + 1e-4 * user, steps)


def poisson(user: int, steps: int) -> Event:
    """Steps on Poisson batches of 8."""
    return Event(2 + 1e-4 * user, steps, 8 / (100 + 0.01 * user), "poisson")

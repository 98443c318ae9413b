"""Where edits are at home: a run's folder, or a life's, of which the last period that has a round counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client import base as bases
from client import data
from client.base import Base
from client.editing.bench import Bench, opened
from client.node import Node
from client.private import PrivateStore
from client.store import keys
from configs.errors import InputError, unknown
from configs.scenario import Scenario
from server import checkpoint
from server.checkpoint import Checkpoint
from simulations.folders import life_of, of_flower, scenario_of
from simulations.training import World
from strategies.base import Task


@dataclass(frozen=True)
class Place:
    """What users have after a run's last round."""

    scenario: Scenario
    folder: Path  # of the run; of a life, of its period
    home: Path  # of the private store, and of the edits beside it
    last: Checkpoint

    @property
    def task(self) -> Task:
        """The round that would come next."""
        return Task(self.last.round + 1, self.last.shared)


def find(folder: Path) -> Place:
    """Raise `InputError` where there is no run, or none of its rounds is over."""
    asked, home = folder, life_of(folder) or folder
    if home == folder and (begun := sorted(home.glob("period-*/checkpoint.json"))):
        folder = begun[-1].parent
    scenario, last = scenario_of(folder), checkpoint.latest(folder)
    if last is None:
        over = home not in (asked, folder) and (folder / "users.csv").exists()
        why = f"is over, and only the last period of {home} has all that it came to" if over else "has no finished round yet"
        raise InputError(f"{asked} {why}")
    return Place(scenario, folder, home, last)


def refuse_flower(folder: Path) -> None:
    """Raise `InputError` where a run's users are not here."""
    if of_flower(folder):
        raise InputError(f"{folder} holds a run of Flower, whose nodes keep its users; an edit is made where a user is kept")


@contextmanager
def bench(place: Place, key: str = "", layer: int = -1, world: World | None = None) -> Iterator[Bench]:
    """The users' models as the last round left them."""
    base: Base = world.base if world else bases.load(place.scenario.model, place.scenario.engine.device)
    found = world.dataset if world else data.load(place.scenario.data, base.tokenizer, place.scenario.seed, place.scenario.life)
    node = Node(place.scenario, base, found, PrivateStore(place.home / "private", keys.read(key)))
    try:
        checkpoint.refuse_other(place.home, place.last, node.origin)
        with opened(node, layer) as ready:
            yield ready
    finally:
        node.close()


def refuse_user(found: Bench, user: str) -> None:
    """Raise `InputError` for a user who has nothing here that could be corrected."""
    if user in found.node.dataset.unseen:
        raise InputError(f"user '{user}' took no part in training and has no model of their own to correct")
    if user not in found.node.dataset.users:
        raise unknown("user", user, found.node.dataset.users)

"""Where users' models are at home: a run's folder, or a life's, of which the last period that has a round counts; or a node's home."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client import base as bases
from client import data, given
from client.base import Base
from client.editing.bench import Bench, opened
from client.node import Node
from client.private import PrivateStore
from client.split import Split
from client.store import keys, places
from configs.errors import InputError, unknown
from configs.scenario import Scenario
from server import checkpoint
from server.checkpoint import Checkpoint
from simulations.folders import is_run, life_of, of_flower, scenario_of
from simulations.training import World
from strategies.base import Task


@dataclass(frozen=True)
class Place:
    """What users have after a run's last round."""

    scenario: Scenario
    folder: Path  # of the run; of a life, of its period
    home: Path  # of the edits
    last: Checkpoint
    private: Path  # the private store
    on_node: bool = False  # of a run of Flower

    @property
    def task(self) -> Task:
        """The round that would come next."""
        return Task(self.last.round + 1, self.last.shared)


def find(folder: Path) -> Place:
    """Raise `InputError` where there is no run, or none of its rounds is over."""
    if there := _of_node(folder):
        found, home = given.read(there), there.parents[1]
        last = Checkpoint(found.round, found.shared, {}, [], found.origin)
        return Place(found.scenario, there, there, last, home / "nodes" / there.name, True)
    asked, home = folder, life_of(folder) or folder
    if home == folder and (begun := sorted(home.glob("period-*/checkpoint.json"))):
        folder = begun[-1].parent
    scenario, last = scenario_of(folder), checkpoint.latest(folder)
    if last is None:
        over = home not in (asked, folder) and (folder / "users.csv").exists()
        why = f"is over, and only the last period of {home} has all that it came to" if over else "has no finished round yet"
        raise InputError(f"{asked} {why}")
    return Place(scenario, folder, home, last, home / "private")


def _of_node(folder: Path) -> Path | None:
    """Of a node's home, or of one run's folder in it, where it keeps what it was given; None where a folder is neither.

    Raises `InputError` where there is nothing yet, or of which of several runs is not said.
    """
    if folder.parent.name in ("nodes", places.USE):
        found = folder.parents[1] / places.USE / folder.name
        return found if (found / given.FILE).exists() else None
    runs = sorted(path.parent for path in folder.glob(f"{places.USE}/*/{given.FILE}"))
    if len(runs) > 1:
        raise InputError(f"{folder} keeps users of {len(runs)} runs; name one of: {', '.join(map(str, runs))}")
    if not runs and (folder / "nodes").is_dir() and not is_run(folder):
        raise InputError(f"{folder} is a node's home and was given no shared adapter yet; it is, with the next round that trains here")
    return runs[0] if runs else None


def refuse_flower(folder: Path) -> None:
    """Raise `InputError` where a run's users are not here."""
    if of_flower(folder):
        raise InputError(f"{folder} holds a run of Flower; an edit is made on the node that keeps a user, by edit HOME USER")


@contextmanager
def bench(place: Place, key: str = "", layer: int = -1, world: World | None = None) -> Iterator[Bench]:
    """The users' models as the last round left them."""
    base: Base = world.base if world else bases.load(place.scenario.model, place.scenario.engine.device)
    found = world.dataset if world else data.load(place.scenario.data, base.tokenizer, place.scenario.seed, place.scenario.life)
    node = Node(place.scenario, base, found, PrivateStore(place.private, keys.read(key)))
    try:
        checkpoint.refuse_other(place.home, place.last, node.origin)
        with opened(node, layer) as ready:
            yield ready
    finally:
        node.close()


def refuse_stranger(place: Place, store: PrivateStore, split: Split, user: str) -> None:
    """Raise `InputError` where this node keeps others, and nothing of this user."""
    shelf = store.shelf()
    if place.on_node and split.has_private and (shelf is None or shelf.manifest(user) is None):
        raise unknown("user", user, [said.user for said in shelf.manifests()] if shelf else [])


def refuse_user(place: Place, found: Bench, user: str) -> None:
    """Raise `InputError` for a user who has nothing here that could be corrected."""
    refuse_stranger(place, found.node.store, found.node.split, user)
    if user in found.node.dataset.unseen:
        raise InputError(f"user '{user}' took no part in training and has no model of their own to correct")
    if user not in found.node.dataset.users:
        raise unknown("user", user, found.node.dataset.users)

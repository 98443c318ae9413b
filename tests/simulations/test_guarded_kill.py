"""A run under both guarantees that is killed before any of its writes: what had left was booked, and it ends as one nobody touched."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from client import base as bases
from client import data
from client.node import Node
from client.private import PrivateStore
from configs.scenario import Scenario, load
from server import checkpoint
from simulations.training import World as Parts
from simulations.training import train
from strategies.base import Release, Task
from strategies.privacy.events import Event
from strategies.privacy.ledger import Ledger
from tests.simulations import kills
from tests.simulations.command import FORKS
from tests.simulations.conftest import World

GUARDED = ("privacy=both", "privacy.example.epsilon=3", "privacy.user.epsilon=3", "weights=uniform", "rounds=1", "users_per_round=2",
           "evaluate_every=0", "data.users=3", "shared_training.batch=100", "private_training.batch=100")  # fmt: skip
LEDGERS = ("ledger.sqlite", "joint.sqlite")
WRITES = ((Ledger, "spend_within"), (PrivateStore, "save_parts"), (checkpoint, "write_state"), (checkpoint, "write_text"))


def run(scenario: Scenario, world: Parts, folder: Path) -> None:
    """Run, and say who has released what in which round."""
    trained = Node.train
    said = os.open(folder / "left", os.O_WRONLY | os.O_CREAT)

    def watched(self: Node, task: Task, users: Sequence[str]) -> Iterator[Release]:
        for user, release in zip(users, trained(self, task, users), strict=True):
            os.write(said, f"{user} {task.round} {len(release.update)}\n".encode())
            yield release

    Node.train = watched
    train(scenario, world, folder, (), lambda _row: None)


def everywhere(words: tuple[str, ...], home: Path) -> None:
    """The run that nobody touches in ``home/whole``; and in ``home/n`` one killed before its nth write, then ended."""
    torch.set_num_threads(1)
    scenario = load("movielens", words)
    base = bases.load(scenario.model, "cpu")
    world = Parts(base, data.load(scenario.data, base.tokenizer, scenario.seed))
    train(scenario, world, home / "whole", (), lambda _row: None)
    for writes in range(1000):
        (home / f"{writes}").mkdir()
        if not kills.killed(partial(run, scenario, world, home / f"{writes}"), WRITES, writes):
            break
        for name in LEDGERS:
            if (home / f"{writes}" / name).exists():
                (home / f"{writes}" / f"then-{name}").write_bytes((home / f"{writes}" / name).read_bytes())
        train(scenario, world, home / f"{writes}", (), lambda _row: None)
    (home / "done").touch()


def booked(path: Path) -> dict[tuple[str, int], set[Event]]:
    """What each user is booked for in each round."""
    found: dict[tuple[str, int], set[Event]] = {}
    if path.exists():
        with Ledger(path) as ledger:
            for user, round_, *event in ledger._db.execute("SELECT user, round, noise, steps, rate, sampling, kind FROM spends"):
                found.setdefault((user, round_), set()).add(Event(*event))
    return found


def left(folder: Path) -> set[tuple[str, int, bool]]:
    """(user, round, whether with an update) of all releases that had left when the process was killed."""
    lines = (folder / "left").read_text().splitlines()
    return {(user, int(number), size != "0") for user, number, size in map(str.split, lines)}


def kept(folder: Path) -> dict[str, bytes]:
    """Tensors that a run ends with."""
    files = [*folder.glob("private/*/0*.safetensors"), *folder.glob("shared-*.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def home(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are."""
    found = tmp_path_factory.mktemp("guarded")
    running = FORKS.Process(target=everywhere, args=((*world.settings, *GUARDED), found))
    running.start()
    running.join()
    assert (found / "done").exists()
    return found


def test_whatever_had_left_when_a_run_was_killed_was_booked(home: Path) -> None:
    whole, most, least = {name: booked(home / "whole" / name) for name in LEDGERS}, 0, 99
    for folder in killed(home):
        example, joint = (booked(folder / f"then-{name}") for name in LEDGERS)
        for user, number, update in left(folder):
            assert example[user, number] == whole[LEDGERS[0]][user, number]
            assert not update or joint[user, number] == whole[LEDGERS[1]][user, number]
        most, least = max(most, len(left(folder))), min(least, len(left(folder)))
    assert (least, most) == (0, 2 + 3), "kills fell before the first release and after the last"


def test_a_killed_run_that_goes_on_ends_as_the_uninterrupted_one_and_costs_the_same(home: Path) -> None:
    runs = list(killed(home))
    assert len(runs) == 2 + 7 + 7, "the scenario; bookings, states and checkpoints of the round and of the last, private one"
    for folder in runs:
        assert kept(folder) == kept(home / "whole") != {}
        for name in LEDGERS:
            assert booked(folder / name) == booked(home / "whole" / name) != {}


def killed(home: Path) -> list[Path]:
    """The folders of runs that were killed: all but the last."""
    return sorted((path for path in home.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))[:-1]

"""A run whose process is killed again and again, whenever it may be, ends bitwise as one that nobody touched.

The first process is started as a person does. Those after it are forked from one that has imported everything, which saves seconds.
"""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from strategies.files import read_state
from tests.simulations.command import call, forked, process, timeless
from tests.simulations.conftest import World

ROUNDS = 16
FRACTIONS = (0.13, 0.02, 0.21, 0.3)  # of an uninterrupted run's time: how long each process lives at least from its first write on


def private(folder: Path) -> dict[str, bytes]:
    """What every user has, file by file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("private/*/0*.safetensors")}


def last_round(folder: Path) -> int:
    """The last round that counts, 0 before the first."""
    head = folder / "checkpoint.json"
    return json.loads(head.read_text())["round"] if head.exists() else 0


def half_way(folder: Path) -> bool:
    """Whether a user's private state is on disk of a round that does not count yet: where a kill may do most harm."""
    return any(folder.glob(f"private/*/{last_round(folder) + 1:06d}.safetensors"))


def lives(folder: Path, before: int, seconds: float, ended: Callable[[], bool], until: Callable[[Path], bool]) -> None:
    """Wait until a process has written for so long and something is the case, or until it is close to its end."""
    while not ended() and first_write(folder) == before:
        time.sleep(0.002)
    end = time.monotonic() + seconds
    while not ended() and not (time.monotonic() > end and until(folder)) and last_round(folder) < ROUNDS - 3:
        time.sleep(0.001)


def first_write(folder: Path) -> int:
    """Another number for each process that has begun to run rounds here."""
    begun = folder / "scenario.yaml"
    return begun.stat().st_ino if begun.exists() else 0


def test_a_run_killed_at_random_moments_ends_as_the_uninterrupted_one(world: World, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    command = ("run", "movielens", *world.settings, f"rounds={ROUNDS}", "evaluate_every=5")
    warm = forked("--help")  # while the reference runs
    assert call(*command, "--out", whole).code == 0
    took = (whole / "users.csv").stat().st_mtime - (whole / "scenario.yaml").stat().st_mtime

    first, *others = FRACTIONS
    running = process(*command, "--out", folder)
    warm.join()
    lives(folder, 0, first * took, lambda: running.poll() is not None, Path.exists)
    running.kill()
    said = running.communicate()
    assert running.returncode == -signal.SIGKILL, said
    reached = [last_round(folder)]
    for fraction, until in zip(others, (half_way, Path.exists, half_way), strict=True):
        before = first_write(folder)
        child = forked("resume", folder)
        lives(folder, before, fraction * took, lambda child=child: not child.is_alive(), until)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        reached.append(last_round(folder))
    assert reached == sorted(reached)
    assert 0 < reached[-1] < ROUNDS, reached
    assert not (folder / "users.csv").exists()
    child = forked("resume", folder)
    child.join()
    assert child.exitcode == 0

    ours, theirs = (read_state(next(x.glob("shared-*.safetensors"))) for x in (folder, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(bool(value.any()) for name, value in ours.items() if "lora_B" in name)
    assert private(folder) == private(whole) != {}
    assert (folder / "users.csv").read_bytes() == (whole / "users.csv").read_bytes()
    assert [row["round"] for row in timeless(folder)] == list(range(1, ROUNDS + 2))
    assert timeless(folder) == timeless(whole)
    assert not list(folder.rglob(".*.tmp"))

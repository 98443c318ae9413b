"""A life that is killed at random moments ends as one nobody touched and is never booked too little; fifty periods keep it small."""

import json
import os
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from client.store.places import opened
from configs.scenario import load
from simulations.life import periods
from strategies.privacy.ledger import LEDGER, Ledger
from tests.simulations.command import FORKS, forked
from tests.simulations.conftest import World

SETTINGS = ("rounds=1", "personalize=0", "evaluate_every=0", "data.unseen_users=0", "users_per_round=0", "private_training.batch=100",
            "shared_training.batch=100", "controls=[shared_private]")  # fmt: skip
GUARDED = ("data.users=3", "life.periods=3", "life.keep=olora", "life.train=drift", "life.detector_options.noise=6", "privacy=example",
           "privacy.example.epsilon=8", "weights=uniform")  # fmt: skip
KILLS = 10
SHARE = 0.15  # of a life's work that a process does at most before it is killed
TICKS = os.sysconf("SC_CLK_TCK")


def work(process: BaseProcess) -> float:
    """Seconds of CPU that a process has had, which says how far it is whatever else the machine does."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def lived(words: tuple[str | Path, ...], folder: Path, until: float) -> tuple[bool, float, float]:
    """Live in a process that is killed after so much work: whether it was, its work before its first write, and all of it."""
    begun, began, done = folder / "period-0001" / "scenario.yaml", 0.0, 0.0
    process = forked(*words, "--out", folder)
    while process.is_alive():
        done = max(done, work(process))
        began = began or (done if begun.exists() else 0.0)
        if done >= until:
            process.kill()
        time.sleep(0.003)
    process.join()
    assert process.exitcode in (0, -9), process.exitcode
    return process.exitcode == -9, began, done


def tensors(folder: Path) -> dict[str, bytes]:
    return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in (*folder.glob("private/*/0*"), *folder.glob("period-*/shared-*"))}


def said(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in json.loads((folder / "live.json").read_text()).items() if name != "seconds"}


def booked(folder: Path) -> set[tuple[Any, ...]]:
    """(user, run, round, what, ...) of all that the ledger holds."""
    if not (folder / LEDGER).exists():
        return set()
    with Ledger(folder / LEDGER) as ledger:
        return ledger._rows()


def trained(folder: Path) -> dict[str, int]:
    """The newest round of which each user has something: that much has been looked at and released."""
    with opened(folder, None) as shelves:
        return {m.user: max((v.round for v in m.versions), default=0) for shelf in shelves.values() for m in shelf.manifests()}


def test_a_life_killed_at_random_moments_ends_as_one_that_nobody_touched_and_books_no_less(world: World, tmp_path: Path) -> None:
    words = ("live", "movielens", *world.settings, *SETTINGS, *GUARDED)
    killed, began, all_ = lived(words, tmp_path / "whole", float("inf"))
    assert not killed and (whole := booked(tmp_path / "whole"))
    draw, kills, life, reached = random.Random(0), 0, 0, set[int]()
    while kills < KILLS:
        folder = tmp_path / f"{life}"
        killed, _, _ = lived(words, folder, 0.8 * began + draw.random() * SHARE * all_)
        kills += killed
        mine = booked(folder)
        assert mine <= whole
        for user, number in trained(folder).items() if killed and (folder / "private").exists() else ():
            assert {row for row in whole if row[0] == user and int(row[2]) <= number} <= mine, (user, number)
            reached.add(number)
        life += not killed
    lived(words, tmp_path / f"{life}", float("inf"))
    assert len(reached) > 1, "kills fell into several periods"
    for number in range(life + 1):
        folder = tmp_path / f"{number}"
        assert tensors(folder) == tensors(tmp_path / "whole") != {}
        assert said(folder) == said(tmp_path / "whole")
        assert booked(folder) == whole
        assert not list(folder.rglob(".*.tmp"))


# ------------------------------------------------------------------ fifty periods
PERIODS, EARLY = 50, 10
ROWS = ("rounds.jsonl", "users.csv", "before.json", "after.json", "summary.json", "timing.json", "scenario.yaml", ".lock")


def fifty(words: tuple[str, ...], home: Path) -> None:
    """Live, and note after each period what lies on the disk and what is in memory."""
    torch.set_num_threads(1)
    for number in periods.live(load("movielens", words), home / "life"):
        files = [path for path in (home / "life").rglob("*") if path.is_file()]
        state = [path for path in files if path.name not in ROWS]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found = [len(state), sum(path.stat().st_size for path in state), len(files), pages * os.sysconf("SC_PAGE_SIZE")]
        (home / f"{number}.json").write_text(json.dumps(found))


@pytest.mark.parametrize("keep", ["ewc"])
def test_fifty_periods_leave_no_more_than_ten_but_their_rows(world: World, tmp_path: Path, keep: str) -> None:
    (tmp_path / "users").mkdir()
    for user in ("ann", "bob", "eve"):
        rows = [json.dumps({"prompt": f"w{i % 60} w{i % 7}", "label": ("yea", "nay")[i % 2]}) + "\n" for i in range(2 * PERIODS)]
        (tmp_path / "users" / f"{user}.jsonl").write_text("".join(rows))
    small = (f"data.path={tmp_path / 'users'}", f"life.periods={PERIODS}", f"life.keep={keep}", "shared.layers=1", "private.layers=1")
    running = FORKS.Process(target=fifty, args=((*world.settings, *SETTINGS, *small), tmp_path))
    running.start()
    running.join()
    early, late = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (EARLY, PERIODS))
    assert late[0] == early[0] and late[1] <= early[1], "files that are no rows, and their bytes"
    assert late[2] - early[2] == (PERIODS - EARLY) * len(ROWS), "a period leaves its rows and nothing else"
    assert late[3] - early[3] < 16 * 2**20, "bytes in memory"

"""A life that is killed at random moments ends as one nobody touched and is never booked too little; fifty periods keep it small."""

import json
import math
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import torch

from client import base as bases
from client import data
from client.store.places import opened, stores
from configs.scenario import Scenario, load
from simulations.life import periods, record
from tests.simulations.command import FORKS
from tests.simulations.conftest import World
from tests.simulations.kills import booked, tensors

SETTINGS = ("rounds=1", "personalize=0", "evaluate_every=0", "data.unseen_users=0", "users_per_round=0", "private_training.batch=100",
            "shared_training.batch=100", "controls=[shared_private]")  # fmt: skip
GUARDED = ("data.users=3", "life.periods=3", "life.keep=olora", "life.train=drift", "life.detector_options.noise=6", "privacy=example",
           "privacy.example.epsilon=8", "weights=uniform")  # fmt: skip
KILLS, MOST = 10, 60  # at least so many, and on until they fell into several periods, which a busy machine may take longer for
SHARE = 0.5  # of a life's work that a process does at most before it is killed
TICKS = os.sysconf("SC_CLK_TCK")


def work(process: int) -> float:
    """Seconds of CPU that a process has had, which says how far it is whatever else the machine does."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def lived(scenario: Scenario, folder: Path, until: float) -> tuple[bool, float]:
    """Live in a process of its own that is killed after so much work: whether it was, and what it had done."""
    child = os.fork()
    if not child:
        list(periods.live(scenario, folder))
        record.write(folder)
        os._exit(0)
    done = 0.0
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        done = max(done, work(child))
        if done >= until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    assert ended[1] in (0, signal.SIGKILL), ended
    return ended[1] != 0, done


def killed(words: tuple[str, ...], home: Path) -> None:
    """In ``home/whole`` a life that nobody touches; in ``home/0`` and so on lives that are killed, at as many moments as `KILLS`.

    After each kill ``home/kills.json`` holds which life it was, the rounds of which users have something, and what was booked by then.
    """
    torch.set_num_threads(1)
    scenario = load("movielens", words)
    base = bases.load(scenario.model, "cpu")
    found = data.every_period(scenario.data, base.tokenizer, scenario.seed, scenario.life)
    bases.load = lambda *_: base  # both are made once
    data.every_period = lambda *_: found
    list(periods.live(scenario, home / "whole"))  # here, so that what is imported late is imported once
    record.write(home / "whole")
    _, all_ = lived(scenario, home / "timed", math.inf)
    draw, life, seen = random.Random(0), 0, list[Any]()
    while len(seen) < KILLS or (len(fell(seen)) < 2 and len(seen) < MOST):
        was, _ = lived(scenario, home / f"{life}", draw.random() * SHARE * all_)
        if was:
            seen.append([life, trained(home / f"{life}"), sorted(booked(home / f"{life}"))])
        life += not was
    lived(scenario, home / f"{life}", math.inf)
    (home / "kills.json").write_text(json.dumps(seen))


def said(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in json.loads((folder / "live.json").read_text()).items() if name != "seconds"}


def trained(folder: Path) -> dict[str, int]:
    """The newest round of which each user has something: that much has been looked at and released."""
    if not stores(folder, some=False):
        return {}
    with opened(folder, None) as shelves:
        return {m.user: max((v.round for v in m.versions), default=0) for shelf in shelves.values() for m in shelf.manifests()}


def fell(kills: list[Any]) -> set[int]:
    """The rounds after which users were last stored when a life was killed."""
    return {number for _, rounds, _ in kills for number in rounds.values()}


def test_a_life_killed_at_random_moments_ends_as_one_that_nobody_touched_and_books_no_less(world: World, tmp_path: Path) -> None:
    running = FORKS.Process(target=killed, args=((*world.settings, *SETTINGS, *GUARDED), tmp_path))
    running.start()
    running.join()
    kills, whole = json.loads((tmp_path / "kills.json").read_text()), booked(tmp_path / "whole")
    assert len(kills) >= KILLS and whole
    for life, rounds, rows in kills:
        then = {tuple(row) for row in rows}
        assert then <= whole
        for user, number in rounds.items():
            assert {row for row in whole if row[0] == user and int(row[2]) <= number} <= then, (life, user, number)
    assert len(fell(kills)) > 1, "kills fell into several periods"
    for folder in (tmp_path / f"{life}" for life in range(kills[-1][0] + 1)):
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


def test_fifty_periods_leave_no_more_than_ten_but_their_rows(world: World, tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    for user in ("ann", "bob", "eve"):
        rows = [json.dumps({"prompt": f"w{i % 60} w{i % 7}", "label": ("yea", "nay")[i % 2]}) + "\n" for i in range(2 * PERIODS)]
        (tmp_path / "users" / f"{user}.jsonl").write_text("".join(rows))
    small = (f"data.path={tmp_path / 'users'}", f"life.periods={PERIODS}", "life.keep=ewc", "shared.layers=1", "private.layers=1")
    running = FORKS.Process(target=fifty, args=((*world.settings, *SETTINGS, *small), tmp_path))
    running.start()
    running.join()
    early, late = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (EARLY, PERIODS))
    assert late[0] == early[0] and late[1] < 1.01 * early[1], "files that are no rows, and their bytes"
    assert late[2] - early[2] == (PERIODS - EARLY) * len(ROWS), "a period leaves its rows and nothing else"
    assert late[3] - early[3] < 16 * 2**20, "bytes in memory"

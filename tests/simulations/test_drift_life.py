"""A federation whose users change at a known time: who changes trains then, nobody else does, and it costs less."""

import json
import sys
from pathlib import Path
from typing import Any

from client.private import PrivateStore
from configs.scenario import load
from server.report.files import read_rounds
from simulations.life import periods, record
from strategies.keeping.contract import MEMORY, SAT_OUT
from tests.simulations.conftest import World
from tests.simulations.test_long_life import SETTINGS

PERIODS, CHANGE, EACH = 5, 4, 20  # the period in which two users come to answer the other way round; examples of a period
CHANGING, CALM = ("u4", "u5"), ("u0", "u1", "u2", "u3")


def write_users(folder: Path) -> None:
    """Each has one answer to everything: half yea, half nay, so that what is shared learns neither."""
    folder.mkdir()
    for index, user in enumerate((*CALM, *CHANGING)):
        turns = [index + (user in CHANGING and i >= (CHANGE - 1) * EACH) for i in range(PERIODS * EACH)]
        rows = [json.dumps({"prompt": f"w{i % 60} w{i % 7}", "label": ("yea", "nay")[t % 2]}) + "\n" for i, t in enumerate(turns)]
        (folder / f"{user}.jsonl").write_text("".join(rows))


def life(words: tuple[str, ...], folder: Path) -> tuple[dict[str, Any], dict[int, set[str]], int]:
    """A life's record, who sat out which period, and the steps that were trained."""
    scenario, still = load("movielens", words), {}
    for number in periods.live(scenario, folder):
        store = PrivateStore(folder / "private")
        memory = {user: store.parts(user, number + 1).get(MEMORY, {}) for user in (*CALM, *CHANGING)}
        still[number] = {user for user, kept in memory.items() if SAT_OUT in kept and int(kept[SAT_OUT]) == number}
    rows = [row for number in range(1, PERIODS + 1) for row in read_rounds(periods.place(folder, number))]
    return record.write(folder), still, sum(row["steps"] for row in rows)


def test_who_has_changed_trains_at_once_and_nobody_else_does(world: World, tmp_path: Path) -> None:
    write_users(tmp_path / "users")
    words = (*world.settings, *SETTINGS, f"data.path={tmp_path / 'users'}", f"life.periods={PERIODS}", "data.users=0",
             "shared.layers=1", "private.layers=1", "private_training.lr=0.1", "private_training.epochs=6",
             "shared_training.lr=0.001")  # fmt: skip
    always, _, all_ = life(words, tmp_path / "always")
    drift, still, some = life((*words, "life.train=drift"), tmp_path / "drift")
    everybody = {*CALM, *CHANGING}
    assert [still[number] for number in range(1, CHANGE + 1)] == [set(), everybody, everybody, set(CALM)]
    assert set(CALM) <= still[PERIODS]
    assert drift["sat_out"] == [len(still[number]) for number in still] and always["sat_out"] == [0] * PERIODS
    assert drift["train"] == "drift" and some < 0.6 * all_
    told = {name: [round(x, 3) for x in each["prequential"]] for name, each in (("always", always), ("drift", drift))}
    sys.stdout.write(f"{told} steps {all_} {some}, sat out {drift['sat_out']}\n")
    assert drift["ap"] < always["untrained"][0]

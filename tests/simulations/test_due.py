"""Whether the next period of a deployment is due, as a timer asks it."""

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import InputError
from configs.scenario import Scenario, load
from server import checkpoint
from server.checkpoint import Checkpoint
from simulations.life.due import Reached, due, reached
from simulations.life.periods import of_period, place
from tests.simulations.command import ROOT, call

DAY = 86400.0
SPAN = ("life.by=time", "life.start=0", f"life.end={4 * DAY:.0f}", "life.periods=4", "rounds=2", "personalize=0")


@pytest.fixture
def scenario() -> Scenario:
    return load("movielens", SPAN)


def ran(scenario: Scenario, folder: Path, number: int, rounds: int = 2, over: bool = True) -> Path:
    """A period's run that has come so far."""
    here = place(folder, number)
    checkpoint.begin(here, of_period(scenario, number))
    if rounds:
        checkpoint.commit(here, Checkpoint(2 * (number - 1) + rounds, {"x": torch.zeros(1)}, {}, []))
    if over:
        (here / "summary.json").write_text("{}")
    return here


def test_a_period_is_due_when_its_time_is_over_and_enough_users_have_enough(scenario: Scenario) -> None:
    times = {"ann": [0.1 * DAY, 1.2 * DAY, 1.9 * DAY, 2.1 * DAY], "bob": [1.0 * DAY]}
    second = Reached(2, 0, "period-0001")

    def asked(now: float, examples: int = 0, users: int = 1) -> tuple[bool, str]:
        found = due(scenario, second, now, times if examples else {}, examples, users)
        assert bool(found.words) == found.ready
        return found.ready, found.why

    assert asked(2 * DAY - 1) == (False, "period 2 of 4 lasts until 1970-01-03 00:00 UTC")
    assert asked(2 * DAY)[0] and asked(2 * DAY, 2)[0] and asked(2 * DAY, 1, 2)[0]
    assert asked(2 * DAY, 3) == (
        False,
        "period 2 of 4 is over since 1970-01-03 00:00 UTC, and 0 users have 3 examples and more in it, where 1 are asked for",
    )
    assert not asked(2 * DAY, 2, 2)[0] and not asked(DAY, 2)[0]
    assert due(scenario, second, 9 * DAY, {}, 0, 1).words == "life.period=2 --out period-0002 --from period-0001"
    assert due(scenario, Reached(1), DAY, {}, 0, 1).words == "life.period=1 --out period-0001"
    assert due(scenario, Reached(5), 9 * DAY, {}, 0, 1)[:2] == (False, "all 4 periods are over")
    assert due(scenario, Reached(2, 1, "x"), 0.0, {}, 0, 1)[:2] == (True, "period 2 of 4 goes on after 1 of 2 rounds")


def test_how_far_runs_have_come(scenario: Scenario, tmp_path: Path) -> None:
    assert reached(scenario, tmp_path) == Reached(1)
    first = ran(scenario, tmp_path, 1)
    assert reached(scenario, tmp_path) == reached(scenario, first) == Reached(2, 0, "period-0001")
    ran(scenario, tmp_path, 2, rounds=1, over=False)
    assert reached(scenario, tmp_path) == Reached(2, 1, "period-0001")
    ran(scenario, tmp_path, 2, rounds=2, over=False)
    assert reached(scenario, tmp_path) == Reached(2, 2, "period-0001"), "rounds are done, the report is not"
    ran(scenario, tmp_path, 2)
    assert reached(scenario, tmp_path) == Reached(3, 0, "period-0002")
    other = replace(scenario, life=replace(scenario.life, periods=5))
    with pytest.raises(InputError, match="no period of this scenario's life"):
        reached(other, tmp_path)


def test_the_command_answers_a_timer(here: Path) -> None:
    (here / "users").mkdir()
    for user, count in (("ann", 9), ("bob", 6)):
        rows = [json.dumps({"prompt": "a", "label": "yea", "t": i * DAY / 2}) + "\n" for i in range(count)]
        (here / "users" / f"{user}.jsonl").write_text("".join(rows))
    words = (*SPAN, "data.name=files", "data.task=choice", f"data.path={here / 'users'}", "data.fields.time=t", "data.min_examples=6",
             "data.users=0", "data.unseen_users=0", "data.labels=[nay,yea]")  # fmt: skip
    (here / "runs").mkdir()

    def asked(*more: str) -> Any:
        return call("due", "movielens", *words, "--run", here / "runs", *more)

    early, late = asked("--at", "1970-01-01T12:00"), asked("--at", "1970-01-02")
    assert (early.code, early.out, early.err) == (1, "", "period 1 of 4 lasts until 1970-01-02 00:00 UTC\n")
    assert (late.code, late.out) == (0, "life.period=1 --out period-0001\n")
    ran(load("movielens", words), here / "runs", 1)
    ran(load("movielens", words), here / "runs", 2)
    ran(load("movielens", words), here / "runs", 3)
    both, one = (asked("--examples", "2", "--users", users) for users in ("2", "1"))
    assert both.code == 1 and "1 users have 2 examples" in both.err, both
    assert (one.code, one.out) == (0, "life.period=4 --out period-0004 --from period-0003\n")
    for more, said in (
        (("life.by=examples",), "due needs life.by=time"), (("life.end=0",), "due needs life.by=time"),
        (("life.periods=0",), "life.periods is 0"), (("--at", "soon"), "--at must be a date"),
        (("--run", "rnus"), "--run: rnus does not exist"),
    ):  # fmt: skip
        failed = asked(*more)
        assert failed.code == 2 and said in failed.err, (more, failed)


@pytest.mark.parametrize(("code", "ended", "ran_"), [(0, 0, True), (1, 0, False), (2, 2, False)])
def test_the_systemd_unit_runs_what_is_due_and_hides_no_mistake(tmp_path: Path, code: int, ended: int, ran_: bool) -> None:
    unit = (ROOT / "deploy" / "systemd" / "homing-period.service").read_text()
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    words = [word.replace("$$", "$") for word in shlex.split(line.removeprefix("ExecStart="))]
    program = tmp_path / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nif [ "$3" = due ]; then echo life.period=2 --from x; exit {code}; fi\necho "$@" > said\n')
    program.chmod(0o755)
    assert subprocess.run(words, cwd=tmp_path, check=False).returncode == ended
    assert (tmp_path / "said").exists() == ran_
    if ran_:
        assert "deploy run /etc/homing/lab SCENARIO life.period=2 --from x\n" in (tmp_path / "said").read_text()

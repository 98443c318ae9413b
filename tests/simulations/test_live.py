"""A life: periods go on from one another, it ends the same wherever it is killed, and what it keeps does not grow."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from client import base as bases
from client import data
from client.private import PrivateStore
from configs.scenario import Scenario, load
from server import checkpoint
from server.report.promise import spent
from simulations.life import periods, record
from simulations.training import World as Parts
from simulations.training import train
from strategies.files import read_state
from strategies.privacy.ledger import LEDGER, Ledger
from tests.simulations.command import FORKS, call
from tests.simulations.conftest import World
from tests.simulations.kills import booked, killed, tensors, timeless

SETTINGS = ("rounds=1", "personalize=0", "evaluate_every=0", "data.unseen_users=0", "users_per_round=0", "private_training.batch=100",
            "shared_training.batch=100", "controls=[shared_private]")  # fmt: skip
GUARDED = ("data.users=2", "life.periods=2", "life.keep=replay", "life.keep_options.buffer=2", "privacy=example", "weights=uniform")
WRITES = ((Ledger, "spend_within"), (PrivateStore, "save_parts"), (checkpoint, "write_state"), (checkpoint, "write_text"),
          (periods, "write_text"))  # fmt: skip
MANY = 8  # periods
Made = Callable[..., Scenario]


@pytest.fixture
def made(world: World) -> Made:
    return lambda *more: load("movielens", [*world.settings, *SETTINGS, *more])


def life(scenario: Scenario, folder: Path) -> dict[str, Any]:
    assert list(periods.live(scenario, folder)) == list(range(1, scenario.life.periods + 1))
    return record.write(folder)


def test_periods_of_the_same_data_are_one_long_run(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = made("rounds=6", "users_per_round=4")
    base = bases.load(long.model, "cpu")
    whole = data.load(long.data, base.tokenizer, long.seed)
    train(long, Parts(base, whole), tmp_path / "long", (), lambda _row: None)
    monkeypatch.setattr(data, "every_period", lambda *_: [whole] * 3)
    life(made("rounds=2", "users_per_round=4", "life.periods=3"), tmp_path / "life")
    ours, theirs = (read_state(next(f.glob("shared-*"))) for f in (tmp_path / "life" / "period-0003", tmp_path / "long"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name.startswith("shared/"))
    read = [(s.parts(u, 7), u) for s in (PrivateStore(tmp_path / x / "private") for x in ("life", "long")) for u in whole.users]
    half = len(read) // 2
    for (mine, _), (other, _) in zip(read[:half], read[half:], strict=True):
        assert all(torch.equal(mine["private"][name], value) for name, value in other["private"].items())


def test_a_life_says_what_it_came_to(made: Made, tmp_path: Path) -> None:
    said = life(made("life.periods=3", "data.users=3"), tmp_path)
    assert said["periods"] == len(said["matrix"]) == len(said["matrix"][0]) == len(said["seconds"]) == 3
    assert said["users"] == 3 and said["metric"] == "nll" and not said["higher_is_better"] and said["epsilon"] == [{}, {}, {}]
    assert said["definitions"].keys() == said["worst_decile"].keys() == {"ap", "forgetting", "bwt", "fwt"}
    assert said["ap"] == pytest.approx(sum(said["matrix"][2]) / 3)
    assert said["matrix"][0] != said["untrained"] and len(said["prequential"]) == 3
    assert json.loads((tmp_path / "live.json").read_text()) == said


# ------------------------------------------------------------------ killed
def live(scenario: Scenario, folder: Path) -> None:
    list(periods.live(scenario, folder))


def everywhere(words: tuple[str, ...], home: Path) -> None:
    """In ``home/whole`` a life that nobody touches; in ``home/n`` one killed after n writes, again after 5 more, then ended."""
    torch.set_num_threads(1)
    scenario = load("movielens", words)
    base = bases.load(scenario.model, "cpu")
    found = data.every_period(scenario.data, base.tokenizer, scenario.seed, scenario.life)
    bases.load = lambda *_: base  # both are made once
    data.every_period = lambda *_: found
    list(periods.live(scenario, home / "whole"))
    for writes in range(2, 1000, 8):
        life = partial(live, scenario, home / f"{writes}")
        if not killed(life, WRITES, writes):
            break
        killed(life, WRITES, 5)
        life()
    (home / "done").touch()


def test_a_life_killed_anywhere_ends_as_one_that_nobody_touched(world: World, tmp_path: Path) -> None:
    running = FORKS.Process(target=everywhere, args=((*world.settings, *SETTINGS, *GUARDED), tmp_path))
    running.start()
    running.join()
    assert (tmp_path / "done").exists()
    lives = [p for p in tmp_path.iterdir() if p.name.isdigit()]
    assert len(lives) > 1
    for folder in lives:
        assert tensors(folder) == tensors(tmp_path / "whole") != {}
        assert timeless(folder) == timeless(tmp_path / "whole")
        assert booked(folder) == booked(tmp_path / "whole") != set()
        assert not list(folder.rglob(".*.tmp"))


# ------------------------------------------------------------------ bounded, and paid for
def test_over_many_periods_nothing_grows_but_rows(tmp_path: Path, world: World) -> None:
    (tmp_path / "users").mkdir()
    rows = [json.dumps({"prompt": f"w{i % 60} w{i % 7}", "label": ("yea", "nay")[i % 2]}) + "\n" for i in range(2 * MANY)]
    for user in ("ann", "bob"):
        (tmp_path / "users" / f"{user}.jsonl").write_text("".join(rows))
    small = (f"data.path={tmp_path / 'users'}", f"life.periods={MANY}", "life.keep=ewc", "shared.layers=1", "private.layers=1")
    scenario = load("movielens", [*world.settings, *SETTINGS, *small])
    sizes = {}
    for period in periods.live(scenario, tmp_path / "life"):
        files = [p for p in (tmp_path / "life").rglob("*") if p.is_file()]
        state = [p for p in files if p.suffix in (".safetensors", ".sqlite") or "private" in p.parts]
        sizes[period] = (len(state), sum(p.stat().st_size for p in state))
        old = set() if period == 1 else {p.name for p in periods.place(tmp_path / "life", period - 1).iterdir()}
        assert not any(name.startswith(("shared", "checkpoint")) for name in old)
    assert sizes[MANY][0] == sizes[3][0] and sizes[MANY][1] < 1.05 * sizes[3][1]
    assert len(record.write(tmp_path / "life")["matrix"]) == MANY


def test_a_guarded_life_ends_within_its_budget_and_partition_costs_the_dearest_period(made: Made, tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    rows = [json.dumps({"prompt": f"w{i % 60}", "label": ("yea", "nay")[i % 2], "t": i}) + "\n" for i in range(12)]
    for user in ("ann", "bob"):
        (tmp_path / "users" / f"{user}.jsonl").write_text("".join(rows))
    common = (f"data.path={tmp_path / 'users'}", "data.fields.time=t", "life.periods=3", "life.by=time", "life.start=0", "life.end=12",
              "privacy=example", "privacy.example.epsilon=2", "weights=uniform")  # fmt: skip
    composed = life(made(*common), tmp_path / "composed")["epsilon"]
    assert [x["example"] for x in composed] == sorted(x["example"] for x in composed) and composed[0]["example"] < 1.3
    assert 1.99 < composed[-1]["example"] <= 2
    apart = made(*common, "life.account=partition")
    assert [x["example"] for x in life(apart, tmp_path / "apart")["epsilon"]] == pytest.approx([2, 2, 2], rel=2e-3)
    last = periods.place(tmp_path / "apart", 3)
    assert spent(periods.of_period(apart, 3), last)["example"] <= 2
    (tmp_path / "apart" / LEDGER).unlink()
    with pytest.raises(Exception, match="is missing, which says what this life has cost"):
        list(periods.live(apart, tmp_path / "apart"))


def test_the_command_lives_goes_on_and_refuses_in_a_sentence(world: World, here: Path) -> None:
    words = ("live", "movielens", *world.settings, *SETTINGS, "data.users=2", "life.periods=2")
    said = call(*words, "--keep", "sequential,replay:buffer=1", "--out", here / "study")
    assert said.code == 0 and "replay (buffer 1)" in said.out and (here / "study" / "live.md").exists(), said.err
    page = next(here.glob("study/replay-*/live.html")).read_text()
    assert "What is known when" in page and "http" not in page.split("</script>")[-1].replace("http://www.w3.org", "")
    again = call(*words, "--keep", "sequential,replay:buffer=1", "--out", here / "study")
    assert again.code == 0 and "round" not in again.out
    for more, sentence in (
        (["life.periods=0"], "life.periods is 0"), (["life.period=1"], "leave it out"), (["life.keep=ewcc"], "did you mean 'ewc'"),
        (["life.periods=9"], "no user has two examples"), (["--keep", "nothing"], "unknown life.keep"),
    ):  # fmt: skip
        failed = call(*words, *more, "--out", here / "no")
        assert failed.code == 2 and sentence in failed.err and not (here / "no").exists(), (more, failed)
    assert "give 'live'" in call("run", "movielens", *world.settings, "life.periods=2", "--out", here / "no").err

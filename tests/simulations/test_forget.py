"""A user leaves: the run without them is the one that never had them, to the bit, and nothing of them is in any file."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import base as bases
from client.base import Base
from client.data.without import mark
from client.private import PrivateStore
from configs.scenario import Scenario, load
from server import checkpoint
from simulations import making
from simulations.forget import membership, plan, search, suite
from simulations.life import periods
from simulations.run import run as run_scenario
from strategies.privacy.ledger import LEDGER, Ledger
from strategies.tree import State
from tests.simulations.command import FORKS, ROUNDS, call
from tests.simulations.conftest import World

LEAN = ("evaluate_every=0", "controls=[shared_private]")
WHOLE = ("private_training.batch=100", "shared_training.batch=100")
E = ("privacy=example", "weights=uniform", *WHOLE)
U = ("privacy=user", "weights=uniform", "privacy.user.clip=0.01")
Quick = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_base(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny base is read once for all tests."""
    _once(world, monkeypatch)


@pytest.fixture(scope="module")
def made_once(world: World, tmp_path_factory: pytest.TempPathFactory) -> Quick:
    """A maker of runs, each made once: ``quick(*settings, without=names)`` in data from which these users' files are gone."""
    home = tmp_path_factory.mktemp("made")
    known: dict[Any, Path] = {}

    def make(*settings: str, without: tuple[str, ...] = ()) -> Path:
        key = (settings, without)
        if key not in known:
            known[key] = folder = home / f"{len(known)}"
            run_scenario(scenario(world, *settings, users=left_over(world, home / f"users-{len(known)}", without)), folder)
        return known[key]

    return make


@pytest.fixture
def quick(made_once: Quick) -> Quick:
    return made_once


def scenario(world: World, *more: str, users: Path | None = None) -> Scenario:
    return load("movielens", [*world.settings, *LEAN, *([f"data.path={users}"] if users else []), *more])


def left_over(world: World, folder: Path, without: tuple[str, ...]) -> Path:
    shutil.copytree(world.folder / "users", folder)
    for user in without:
        (folder / f"{user}.jsonl").unlink()
    return folder


def _once(world: World, patch: pytest.MonkeyPatch) -> None:
    found = LOADED.get(world.folder) or bases.load(load("movielens", world.settings).model, "cpu")
    LOADED[world.folder] = found
    patch.setattr(bases, "load", lambda *_: found)


LOADED: dict[Path, Base] = {}


def forgotten(run: Path, *users: str, how: str = "replay", examples: str = "", out: Path, check: bool = False, **options: float) -> Any:
    return suite.forget(plan.plan(run, users, examples, how, options, out), check)


def everything(folder: Path) -> dict[str, State]:
    """What is shared, and what each user has of every kind."""
    store, last = PrivateStore(folder / "private"), checkpoint.latest(folder)
    assert last
    kept = {f"{said.user}/{kind}": state for said in store.begin().manifests() for kind, state in store.parts(said.user, 99).items()}
    return {"shared": last.shared, "memory": last.memory, **kept}


def same(one: Path, other: Path) -> bool:
    a, b = everything(one), everything(other)
    return a.keys() == b.keys() and all(a[k].keys() == b[k].keys() and all(torch.equal(a[k][n], v) for n, v in b[k].items()) for k in b)


def trained(run: Path) -> list[str]:
    return plan.known(run, load(run / "scenario.yaml"))


# ------------------------------------------------------------------ exact
@pytest.mark.parametrize("settings", [(), ("sampling=poisson",), E,
                                      U])  # fmt: skip
def test_a_replay_is_the_run_of_data_that_never_held_them_to_the_bit(quick: Quick, tmp_path: Path, settings: tuple[str, ...]) -> None:
    run = quick(*settings)
    user = trained(run)[1]
    found = forgotten(run, user, out=tmp_path / "out")
    never = quick(*settings, without=(user,))
    assert user in trained(run) and user not in trained(never)
    assert same(tmp_path / "out", never) and not same(tmp_path / "out", run)
    assert found["exact"] and found["users"] == [mark(user)] and found["bytes_found"] == 0 and found["names_found"] == ()
    if settings[:1] == ("privacy=example",):
        (said,) = found["promised"]
        assert said["odds"] == pytest.approx(np.exp(said["epsilon"])) and 7 < said["epsilon"] <= 8
        with Ledger(tmp_path / "out" / suite.BEFORE / LEDGER) as before, Ledger(tmp_path / "out" / LEDGER) as now:
            assert before.participations().get(user) and not now.participations().get(user)
        assert (run / LEDGER).read_bytes() == (tmp_path / "out" / suite.BEFORE / LEDGER).read_bytes()


def test_a_replay_without_examples_is_the_run_that_never_had_them_and_every_other_example_stays_in_its_split(
    quick: Quick, tmp_path: Path
) -> None:
    run = quick()
    user = trained(run)[0]
    found = forgotten(run, user, examples="1,2", out=tmp_path / "out", check=True)
    assert found["max_abs_diff_to_never_there"] == 0 and not same(tmp_path / "out", run)
    assert found["users"] == [mark(user, 1), mark(user, 2)] and user in trained(tmp_path / "out")
    counts = {folder: json.loads((folder / "summary.json").read_text())["users"] for folder in (run, tmp_path / "out")}
    assert counts[run] == counts[tmp_path / "out"]
    rows = {row.split(",")[0]: row.split(",")[2:4] for row in (tmp_path / "out" / "users.csv").read_text().splitlines()}
    was = {row.split(",")[0]: row.split(",")[2:4] for row in (run / "users.csv").read_text().splitlines()}
    assert int(rows[user][0]) == int(was[user][0]) - 2 and rows[user][1] == was[user][1]
    assert {u: x for u, x in rows.items() if u != user} == {u: x for u, x in was.items() if u != user}


def test_a_check_sees_a_run_that_is_not_what_it_should_be(quick: Quick, tmp_path: Path) -> None:
    run = quick()
    user = trained(run)[1]
    assert forgotten(run, user, how="leave", out=tmp_path / "out", check=True)["max_abs_diff_to_never_there"] > 0


# ------------------------------------------------------------------ not exact
def test_leaving_keeps_what_is_shared_and_everybody_elses_files_and_nothing_of_the_user(quick: Quick, tmp_path: Path) -> None:
    run = quick(*E)
    user, *_ = trained(run)
    found = forgotten(run, user, how="leave", out=tmp_path / "out")
    before, after = everything(run), everything(tmp_path / "out")
    assert before.keys() - after.keys() == {f"{user}/private"}
    assert all(torch.equal(after[k][n], v) for k in after for n, v in before[k].items())
    assert (run / LEDGER).read_bytes() == (tmp_path / "out" / LEDGER).read_bytes() and found["not_searched"] == [LEDGER]
    assert found["bytes_found"] == 0 and found["pieces_searched"] > 0 and found["names_found"] == ()
    assert found["promised"][0]["together"]["units"] > 1 and found["seconds"] == 0
    assert user not in (tmp_path / "out" / "users.csv").read_text() and call("show", tmp_path / "out").code == 0


def test_going_on_trains_the_others_for_so_many_rounds_more(quick: Quick, tmp_path: Path) -> None:
    run = quick()
    user, *others = trained(run)
    found = forgotten(run, user, how="continue", rounds=2, out=tmp_path / "out")
    now, was = checkpoint.latest(tmp_path / "out"), checkpoint.latest(run)
    assert now and was and now.round == ROUNDS + 2 + 1 and len(now.rows) == now.round and now.rows[:ROUNDS] == was.rows[:ROUNDS]
    assert not same(tmp_path / "out", run) and found["bytes_found"] == 0 and not found["exact"]
    assert {name.partition("/")[0] for name in everything(tmp_path / "out")} == {"shared", "memory", *others}


def test_left_without_a_guarantee_a_users_own_adapter_is_trained_anew_without_the_examples(quick: Quick, tmp_path: Path) -> None:
    run = quick()
    user = trained(run)[0]
    forgotten(run, user, how="leave", examples="0", out=tmp_path / "out")
    before, after = everything(run), everything(tmp_path / "out")
    assert before.keys() == after.keys()
    moved = {name for name in before if any(not torch.equal(after[name][n], v) for n, v in before[name].items())}
    assert moved == {f"{user}/private"}
    guarded = quick(*E)
    forgotten(guarded, user, how="leave", examples="0", out=tmp_path / "guarded")
    assert same(guarded, tmp_path / "guarded")


# ------------------------------------------------------------------ nothing is left
def test_the_search_finds_what_it_looks_for_wherever_it_lies(quick: Quick, tmp_path: Path) -> None:
    run = quick()
    user, other, *_ = trained(run)
    needles = search.windows(PrivateStore(run / "private"), {user})
    assert needles and search.search(run, needles, [user]).bytes > 0 and search.search(run, needles, [user]).names
    value = next(v for n, v in PrivateStore(run / "private").parts(user, 99)["private"].items() if n.endswith("A.weight"))
    data = value.numpy().tobytes()
    for name, content, named in (
        ("x.bin", b"abc" + data[5:133], False), ("y.json", json.dumps({"who": user}).encode(), True),
        ("z.csv", f"seen,user\nTrue,{user}\n".encode(), True), (f"{user}.txt", b"", True),
        ("w.json", json.dumps(other).encode(), False),
    ):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        found = search.search(folder, needles, [user])
        assert (found.bytes > 0, bool(found.names)) == (name == "x.bin", named), name


def test_the_bytes_of_others_and_of_nobody_are_not_looked_for(tmp_path: Path) -> None:
    store, draw = PrivateStore(tmp_path / "private"), torch.Generator().manual_seed(0)
    common, own = torch.randn(64, generator=draw), torch.randn(64, generator=draw)
    store.save("ann", 1, {"start": common, "zero": torch.zeros(64), "own": own, "short": own[:8] + 1})
    store.save("bob", 1, {"start": common})
    assert search.windows(store, {"ann"}) == set(search.pieces(own)) and len(set(search.pieces(own))) == 4


# ------------------------------------------------------------------ membership
def test_a_membership_test_tells_members_only_where_they_differ() -> None:
    draw = np.random.default_rng(1)
    there, never = draw.normal(2, 1, 30), draw.normal(0, 1, 30)
    told = membership.judged(there, never)
    assert told.interval[0] > told.chance[1] > 0.5 and told.interval[0] < told.auc < told.interval[1]
    alike = membership.judged(draw.normal(0, 1, 30), never)
    assert alike.interval[0] < 0.5 < alike.interval[1] and alike.chance[0] < alike.auc < alike.chance[1]
    alone = membership.judged(np.array([9.0]), never)
    assert alone.auc == 1 and alone.chance[0] < 0.1 and alone.chance[1] > 0.9


STRONG = ("data.unseen_users=3", "private_training.lr=0.05", "private_training.epochs=12", "users_per_round=0", "rounds=2")


def test_members_are_told_before_and_afterwards_only_as_far_as_what_is_shared_tells(quick: Quick, tmp_path: Path) -> None:
    run = quick(*STRONG)
    gone = trained(run)[:2]
    found = forgotten(run, *gone, out=tmp_path / "out")
    tests = found["membership"]
    assert found["auc_before"] == 1
    assert tests["after"]["own"]["members"] == tests["after"]["shared"]["members"]  # there is nothing of their own to ask
    assert all(tests[when]["own"]["control"]["members"] == 2 for when in ("before", "after"))


# ------------------------------------------------------------------ a life
def living(world: World, folder: Path, *more: str, until: int = 1, users: Path | None = None) -> tuple[Scenario, Path]:
    found = scenario(world, "rounds=1", "personalize=0", "users_per_round=0", "life.periods=2", "life.keep=replay",
                     "life.keep_options.buffer=2", *E, *more, users=users)  # fmt: skip
    with closing(periods.live(found, folder)) as lived:
        for number in lived:
            if number == until:
                break
    return found, folder


@pytest.mark.parametrize("how", ["leave", "replay"])
def test_a_life_goes_on_without_somebody_and_no_file_holds_them(world: World, tmp_path: Path, how: str) -> None:
    _, life = living(world, tmp_path / "life")
    user = trained(life)[1]
    needles = search.windows(PrivateStore(life / "private"), {user})
    found = forgotten(life, user, how=how, out=tmp_path / "out")
    assert needles and found["bytes_found"] == 0 and found["names_found"] == ()
    new = load(tmp_path / "out" / "scenario.yaml")
    assert new.data.without == (mark(user),) and list(periods.live(new, tmp_path / "out")) == [1, 2]
    left = search.search(tmp_path / "out", needles, [user])
    assert left.bytes == 0 and left.names == ()
    with Ledger(tmp_path / "out" / (LEDGER if how == "leave" else f"{suite.BEFORE}/{LEDGER}")) as ledger:
        assert ledger.participations()[user] == 1
    if how == "replay":
        living(world, tmp_path / "never", until=2, users=left_over(world, tmp_path / "users", (user,)))
        ends = [tmp_path / x for x in ("out", "never")]
        ours, theirs = (checkpoint.latest(periods.place(x, 2)) for x in ends)
        assert ours and theirs and all(torch.equal(ours.shared[n], v) for n, v in theirs.shared.items())
        kept = [{u: PrivateStore(x / "private").parts(u, 99) for u in trained(x)} for x in ends]
        assert kept[0].keys() == kept[1].keys()
        assert all(torch.equal(kept[0][u][k][n], v) for u, each in kept[1].items() for k, s in each.items() for n, v in s.items())


# ------------------------------------------------------------------ the command
def killed(run: str, user: str, out: str, settings: tuple[str, ...]) -> None:
    """A replay that is killed once its first round counts."""
    torch.set_num_threads(1)
    base = bases.load(load("movielens", settings).model, "cpu")
    bases.load = lambda *_: base
    asked = plan.plan(Path(run), [user], "", "replay", {}, Path(out))
    suite.forget(asked, say=lambda _text: os.kill(os.getpid(), signal.SIGKILL))


def test_the_command_goes_on_after_a_kill_purges_and_refuses_in_a_sentence(quick: Quick, world: World, tmp_path: Path) -> None:
    run, out = Path(shutil.copytree(quick(), tmp_path / "run")), tmp_path / "out"
    user, *others = trained(run)
    process = FORKS.Process(target=killed, args=(str(run), user, str(out), world.settings))
    process.start()
    process.join()
    stage = tmp_path / ".out.making"
    assert process.exitcode == -signal.SIGKILL and not out.exists() and stage.exists()
    other = call("forget", run, others[0], "--out", out)
    assert other.code == 2 and "was cut off and had another scenario" in other.err
    for words, sentence in (
        (["nobody"], "has not trained on a user 'nobody'"), ([user, "--with", "replai"], "did you mean 'replay'"),
        ([user, "--examples", "0,x"], "takes numbers such as 0,3,4"), ([user, others[0], "--examples", "0"], "are of one user"),
        ([user, "--examples", "999"], "has not trained on unit 999"), (trained(run), "nobody would be left"),
        ([user, "--with", "continue", "--option", "rounds=0"], "must be a whole number"),
    ):  # fmt: skip
        refused = call("forget", run, *words, "--out", tmp_path / "no")
        assert refused.code == 2 and sentence in refused.err, (words, refused)
        assert not list(tmp_path.glob("*no*"))
    said = call("forget", run, user, "--out", out, "--purge")
    assert said.code == 0 and "bytes found: 0" in said.out and not run.exists() and not stage.exists(), said.err
    assert "round 1 without" not in said.out and same(out, quick(without=(user,)))
    assert not (out / making.NOTE).exists() and user not in (out / plan.FILE).read_text().replace(str(run), "")


def test_what_a_guarantee_was_planned_for_is_not_trained_beyond(quick: Quick, tmp_path: Path) -> None:
    run = quick(*E)
    said = call("forget", run, trained(run)[0], "--with", "continue", "--out", tmp_path / "out")
    assert said.code == 2 and "give --with leave" in said.err and not list(tmp_path.iterdir())

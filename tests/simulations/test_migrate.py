"""A run goes to another base by one command, goes on after a kill, costs nothing where it uses no data, and fails closed."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from client.migration import keep
from client.private import PrivateStore, folder_name
from client.store import places
from server import checkpoint
from simulations.migrate import plan, suite
from strategies.privacy.ledger import LEDGER, Ledger
from tests.bases import drifted, saved, shorter, wider
from tests.client.store.kept import files
from tests.conftest import llama
from tests.simulations.command import FORKS, ROUNDS, USERS, call, tree
from tests.simulations.conftest import World


@pytest.fixture(scope="module")
def bases(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that `model.name` may name."""
    folder = tmp_path_factory.mktemp("bases")
    made = {"same": llama, "newer": drifted, "shallower": shorter, "wider": wider}
    return {name: saved(make(), folder / name, world.folder / "model") for name, make in made.items()}


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return Path(shutil.copytree(world.run, tmp_path / "run"))


def states(folder: Path) -> dict[str, Any]:
    """What every user has at the end."""
    store = PrivateStore(folder / "private")
    return {said.user: store.load(said.user, 99) for said in store.begin().manifests()}


def kept(folder: Path) -> dict[str, bytes]:
    """A run's files but locks."""
    return {name: data for name, data in files(folder).items() if name != ".lock"}


def test_a_run_is_carried_and_scored_and_the_old_one_stays(run: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    before, out = kept(run), tmp_path / "out"
    said = call("migrate", run, "--to", bases["newer"], "--out", out)
    assert (said.code, said.err) == (0, "") and f"run: {out}" in said.out and "retained gain" in said.out
    assert kept(run) == before
    there, here = states(run), states(out)
    assert len(here) == USERS and all(torch.equal(here[u][k], v) for u, each in there.items() for k, v in each.items())
    was, now = checkpoint.latest(run), checkpoint.latest(out)
    assert was and now and now.round == ROUNDS + 1 and all(torch.equal(now.shared[k], v) for k, v in was.shared.items())
    assert now.origin.base != was.origin.base and all(torch.equal(now.memory[k], v) for k, v in was.memory.items())
    found = json.loads((out / "migrate.json").read_text())
    assert found["users"] == USERS and found["lost"] == 0 and set(found["rows"]) >= {"base old", "shared_private new"}
    rows, left = found["rows"], found["retained_gain"]["cohort"]
    gain = {when: rows[f"base {when}"]["nll"] - rows[f"shared_private {when}"]["nll"] for when in ("old", "new")}
    assert left is None or left == pytest.approx(gain["new"] / gain["old"])
    assert call("show", out).code == 0 and call("export", out, "u1", "--out", tmp_path / "u1").code == 0
    assert call("store", "verify", "--home", out).code == 0


def test_a_run_is_the_same_on_the_same_base(run: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    assert call("migrate", run, "--to", bases["same"], "--with", "layers", "--out", tmp_path / "out").code == 0
    rows = json.loads((tmp_path / "out" / "migrate.json").read_text())["rows"]
    assert all(rows[f"{name} old"] == rows[f"{name} new"] for name in ("base", "shared", "shared_private"))


def test_fresh_adapters_learn_from_texts_that_the_old_base_writes(run: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    said = call("migrate", run, "--to", bases["shallower"], "--with", "distill", "--option", "steps=8", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "out" / "migrate.json").read_text())
    assert found["uses_data"] is False and 0 < found["lost"] < 0.8  # of the divergence that there was
    assert len(states(tmp_path / "out")) == USERS


def killed(run: str, to: str, out: str) -> None:
    """A migration that is killed once its first users are there."""
    keep.CHUNK = 2
    suite.migrate(plan.plan(Path(run), to, "carry", (), (), Path(out), ""), lambda _text: os.kill(os.getpid(), signal.SIGKILL))


def test_a_migration_that_was_killed_goes_on_by_the_same_command(run: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    before, out, stage = kept(run), tmp_path / "out", tmp_path / ".out.making"
    process = FORKS.Process(target=killed, args=(str(run), str(bases["newer"]), str(out)))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not out.exists() and len(states(stage)) == 2
    assert kept(run) == before
    half = {k: v for k, v in tree(stage / "private").items() if k.endswith("safetensors")}
    other = call("migrate", run, "--to", bases["newer"], "--with", "project", "--out", out)
    assert other.code == 2 and "was cut off and had another with" in other.err and not out.exists()
    said = call("migrate", run, "--to", bases["newer"], "--out", out)
    assert said.code == 0 and f"{USERS - 2} users are on the new base" in said.out and not stage.exists()
    after = tree(out / "private")
    assert all(after[name.replace(str(stage), str(out))] == was for name, was in half.items())  # not made again
    assert len(states(out)) == USERS


@pytest.fixture(scope="module")
def guarded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under guarantee E."""
    out = tmp_path_factory.mktemp("guarded") / "run"
    words = [
        *world.settings,
        "privacy=example",
        "rounds=1",
        "users_per_round=0",
        "personalize=0",
        "evaluate_every=0",
        "weights=uniform",
    ]
    said = call("run", "movielens", *words, "--out", out)
    assert said.code == 0, said.err
    return out


def test_what_uses_no_data_leaves_the_ledger_as_it_was_to_the_byte(guarded: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    before, out = (guarded / LEDGER).read_bytes(), tmp_path / "out"
    said = call("migrate", guarded, "--to", bases["newer"], "--with", "project", "--out", out)
    assert said.code == 0, said.err
    assert (guarded / LEDGER).read_bytes() == (out / LEDGER).read_bytes() == before
    summaries = [json.loads((folder / "summary.json").read_text())["epsilon"] for folder in (guarded, out)]
    assert summaries[0] == summaries[1] and summaries[0]["example"] > 0


def test_training_anew_is_refused_once_the_budget_is_spent_and_books_on_top_of_it_where_it_is_larger(
    guarded: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    words = ("migrate", guarded, "--to", bases["newer"], "--with", "retrain", "--out", tmp_path / "out")
    said = call(*words)
    assert said.code == 2 and "of privacy.example.epsilon=8 nobody has anything left" in said.err and not list(tmp_path.glob("*out*"))
    said = call(*words, "privacy.example.epsilon=12")
    assert said.code == 0, said.err
    with Ledger(guarded / LEDGER) as old, Ledger(tmp_path / "out" / LEDGER) as new:
        assert new.beyond(old) > 0 and old.beyond(new) == 0 and len(new.bookings()) == 2
    assert 8 < json.loads((tmp_path / "out" / "summary.json").read_text())["epsilon"]["example"] <= 12


def test_another_base_under_the_same_name_is_refused_with_the_way_out(
    run: Path, world: World, bases: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "model"
    shutil.copytree(bases["newer"], moved)
    scenario = run / "scenario.yaml"
    scenario.write_text(scenario.read_text().replace(str(world.folder / "model"), str(moved)))
    (run / "users.csv").unlink()
    shutil.rmtree(run / "private")
    for words in (("resume", run), ("export", run, "u1", "--out", tmp_path / "u1"), ("migrate", run, "--to", bases["same"])):
        said = call(*words)
        assert said.code == 2 and "the shared adapter in" in said.err and "by 'migrate'" in said.err, (words, said)


BAD = (
    ("wider", "carry", (), "carry needs equal shapes: 'model.layers.1.self_attn.q_proj'"),
    ("newer", "cary", (), "did you mean 'carry'?"),
    ("newer", "carry", ("rounds=9",), "keeps all settings but model.*"), ("newer", "carry", ("--option", "x"), "NAME=NUMBER"),
    ("newer", "project", ("--option", "rank=x"), "must be a number"), ("nowhere/at/all", "carry", (), "does not exist"),
)  # fmt: skip


@pytest.mark.parametrize(("to", "how", "more", "said"), BAD)
def test_a_mistake_is_one_sentence(run: Path, bases: dict[str, Path], to: str, how: str, more: tuple[str, ...], said: str) -> None:
    found = call("migrate", run, "--to", bases.get(to, to), "--with", how, *more)
    assert found.code == 2 and said in found.err and found.err.count("\n") == 1
    assert not list(run.parent.glob("*tiny-*"))


def test_a_node_moves_its_own_store_to_where_the_servers_new_run_looks_for_it(
    run: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(run / "private", home / "nodes" / folder_name("77"))
    before = files(home / "nodes")
    words = ("store", "migrate", run / "scenario.yaml", "--run", "77", "--to", bases["newer"], "--home", home)
    said = call(*words)
    assert said.code == 0 and f"{USERS} users, by carry" in said.out, said.err
    write = json.dumps({"run": "77", "noise": "seed", "simulated": True, "lets": []})
    (run / "flower.json").write_text(write)
    assert call("migrate", run, "--to", bases["newer"], "--out", tmp_path / "out").code == 0
    name = json.loads((tmp_path / "out" / "flower.json").read_text())["run"]
    assert f"nodes/{folder_name(name)}" in places.stores(home) and name.startswith("77@")
    assert before.items() <= files(home / "nodes").items()
    again = call(*words)
    assert again.code == 2 and "this node has moved" in again.err
    assert "did you mean '77'?" in call(*(w if w != "77" else "777" for w in words)).err


def test_bases_are_made_without_a_hub(world: World, tmp_path: Path) -> None:
    text, model = tmp_path / "text.txt", world.folder / "model"
    text.write_text(" ".join(f"w{i % 60}" for i in range(400)))
    for name, more in {
        "newer": ("--steps", "3", "--layers", "1"),
        "rounded": ("--precision", "float8"),
        "less": ("--drop", "1"),
    }.items():
        said = call("drift", tmp_path / name, "--model", model, "--text", text, *more)
        assert said.code == 0 and f"model.name={tmp_path / name}" in said.out, said.err
        again = call("drift", tmp_path / name, "--model", model)
        assert again.code == 2 and "exists already" in again.err
    first = (tmp_path / "newer" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "newer")
    call("drift", tmp_path / "newer", "--model", model, "--text", text, "--steps", "3", "--layers", "1")
    assert (tmp_path / "newer" / "model.safetensors").read_bytes() == first  # seeded
    assert "did you mean 'float8'?" in call("drift", tmp_path / "x", "--model", model, "--precision", "float9").err

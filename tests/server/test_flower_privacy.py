"""Guarantee E over Flower: what a node books, what it lets out, and that private tensors have no part in that."""

import itertools
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from client import answers as client_app
from client import base as bases
from client import repeats
from client.private import PrivateStore, folder_name
from client.split import split
from client.store.places import ANSWERS
from client.train import Trainer
from configs.errors import InputError
from configs.scenario import scenario_hash
from server import app as server_app
from server import checkpoint
from server.flower_strategy import HomingStrategy
from server.grid import GridRuntime, questions
from strategies.base import Task
from strategies.privacy import noise as noises
from strategies.privacy.events import Event
from strategies.privacy.ledger import LEDGER, Ledger, Spend
from strategies.privacy.noise import keyed
from strategies.schemes import SCHEMES, build
from strategies.schemes.ifca import CHOICE
from tests.server.flower_world import KEPT, NODES, PLAYED, RUN, USERS, LocalGrid, distance, fused, private, scenario_of, shift

SGD = " ".join(f"{x}_training.optimizer=sgd {x}_training.lr=0.3" for x in ("shared", "private"))
E = "privacy=example privacy.example.epsilon=6"
WHOLE = f"{E} shared_training.batch=99 private_training.batch=99"  # everyone's examples are one batch, which is quickly accounted
SHORT = f"{WHOLE} {SGD} rounds=2 evaluate_every=1"
pytestmark = pytest.mark.usefixtures("home")


def start_of(overrides: str) -> dict[str, torch.Tensor]:
    scenario = scenario_of(overrides)
    return split(scenario, bases.load(scenario.model, "cpu")).shared_start()


def booked(path: Path) -> dict[str, Any]:
    with Ledger(path) as ledger:
        return ledger.histories()


@pytest.mark.parametrize(
    ("scheme", "aggregator", "how"),
    [("fedrep", "fedavgm", WHOLE), ("fedsa", "flower.FedAvg", WHOLE),
     ("dual", "fedit", f"{WHOLE} privacy.guarantee=unclaimed privacy.example.noised=[private]")],
)  # fmt: skip
def test_noise_from_the_seed_makes_nodes_of_flower_end_where_one_fused_pass_ends(
    world: str, home: Path, tmp_path: Path, scheme: str, aggregator: str, how: str
) -> None:
    overrides = f"{world} {how} {SGD} scheme={scheme} aggregator={aggregator} users_per_round=5 personalize=1 rounds=2"
    overrides += " evaluate_every=0 controls=[shared,shared_private]"
    scenario = scenario_of(overrides)
    here, node = fused(scenario, tmp_path / "fused")
    moved = shift(here.shared, node.split.shared_start())
    node.close()
    page = server_app.run(scenario, LocalGrid(overrides, PLAYED), home / "runs" / "x")
    there = checkpoint.latest(home / "runs" / "x")
    assert there is not None and there.round == 3 and moved > 1e-2
    assert distance(here.shared, there.shared) < 5e-5 * moved
    nodes = home / "nodes" / folder_name(str(RUN))
    mine, theirs = private(tmp_path / "fused"), private(nodes)
    assert mine.keys() == theirs.keys() and max(distance(mine[user], theirs[user]) for user in mine) < 5e-5 * moved
    assert booked(tmp_path / "fused" / LEDGER) == booked(nodes / LEDGER)
    assert bool(booked(nodes / LEDGER)) == ("unclaimed" not in how) and not (home / LEDGER).exists()
    assert there.rows[-1]["train_loss"] == pytest.approx(here.rows[-1]["train_loss"], abs=1e-4)
    assert ("Simulated: the noise comes from the seed" in page.read_text()) == ("unclaimed" not in how)


def test_a_deployed_run_books_for_life_says_its_budget_and_lets_no_score_and_no_counter_out(world: str, home: Path) -> None:
    overrides = f"{world} {SHORT}"
    grid = LocalGrid(overrides)
    page = server_app.run(scenario_of(overrides), grid, home / "runs" / "x")
    assert {message.metadata.message_type for message, _ in grid.sent} == {"query", "train"}
    for message, reply in grid.sent:
        if message.metadata.message_type == "train":
            assert set(reply.content["release.0"]) == {"weight", "users"}
    with Ledger(home / LEDGER) as ledger:
        assert ledger.runs() == [str(RUN)] and len(ledger.users()) == USERS
        assert all(ledger.rounds(user, str(RUN)) == 2 for user in ledger.users())
    summary = json.loads((page.parent / "summary.json").read_text())
    assert summary["epsilon"] == {"example": 6.0} and summary["users"] == USERS and summary["rows"] == {}
    rows = [json.loads(line) for line in (page.parent / "rounds.jsonl").read_text().splitlines()]
    assert [(row["releases"], row["train_loss"], row["tokens"]) for row in rows] == [(USERS, None, 0)] * 2
    first, heading = re.sub("<[^>]*>", "", page.read_text().split("<main>")[1]).strip().splitlines()[:2]
    assert "is at most (6, 1e-05)-DP" in first and "ledger" in first and "Simulated" not in first and "Waived" not in first
    assert heading.startswith("No scores left the nodes")


def test_scores_that_would_ride_along_stay_where_they_are_not_waived(world: str, home: Path) -> None:
    for waived, leaves in (("", False), (" privacy.waive=[scores]", True)):
        overrides = f"{world} {SHORT} evaluate_along=true{waived}"
        page = server_app.run(scenario_of(overrides), grid := LocalGrid(overrides), home / "runs" / f"x{leaves}")
        rows = [json.loads(line) for line in (page.parent / "rounds.jsonl").read_text().splitlines()]
        assert ["validation_before" in row for row in rows] == [False, leaves]
        sent = [r.content[n] for m, r in grid.sent if m.metadata.message_type == "train" for n in r.content if n.startswith("release.")]
        assert any(".nll" in name for release in sent for name in release) == leaves and len(sent) > 3
        shutil.rmtree(home)


def test_what_the_scenario_waives_leaves_and_the_first_line_says_so(world: str, home: Path) -> None:
    overrides = f"{world} {SHORT} privacy.waive=[scores,counters]"
    page = server_app.run(scenario_of(overrides), LocalGrid(overrides), home / "runs" / "x")
    summary = json.loads((page.parent / "summary.json").read_text())
    assert "shared_private" in summary["rows"]
    rows = [json.loads(line) for line in (page.parent / "rounds.jsonl").read_text().splitlines()]
    assert all(row["train_loss"] > 0 and row["tokens"] > 0 and row["validation"]["shared"]["nll"] > 0 for row in rows)
    assert "Waived in the scenario, and let out without noise: the scores below and the training" in page.read_text()


def test_a_deployed_node_refuses_to_score_whoever_asks(world: str) -> None:
    overrides = f"{world} {SHORT}"
    runtime = GridRuntime(grid := LocalGrid(overrides), "x")
    task = Task(1, start_of(overrides))
    assert runtime.evaluate(task, "validation", ("shared",)) == []
    for reply in grid.send_and_receive(questions(runtime.homes(), task, "x", "validation", ("shared",))):
        assert reply.has_error() and "scores do not leave a node" in str(reply.error.reason)


def test_a_node_in_a_deployment_draws_nothing_from_the_seed_and_a_round_from_elsewhere_is_another_release_that_costs_again(
    world: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = f"{world} {SHORT} privacy.example.epsilon=60 shared_training.batch=3"
    monkeypatch.setattr(noises, "keyed", lambda *_: pytest.fail("noise from the seed"))
    drawn = itertools.count()
    real = noises.entropic
    monkeypatch.setattr(noises, "entropic", lambda: (next(drawn), real())[1])
    runtime = GridRuntime(LocalGrid(overrides), "x")
    start = start_of(overrides)
    updates, steps = [], []
    for shared in (start, {n: v + 1e-6 for n, v in start.items()}):
        task = Task(1, shared, participations=2)
        updates.append([release.update for release in runtime.train(task, runtime.users()[:1])])
        steps.append(sum(event.steps for history in booked(home / LEDGER).values() for event in history))
    assert all(shift(a, b) > 1e-3 for a, b in zip(*updates, strict=True))
    assert steps[1] == 2 * steps[0] > 0
    assert next(drawn) == 2 * steps[1]  # of each step the coins and the noise


def test_an_order_that_comes_again_gets_the_same_bytes_and_costs_nothing(world: str, home: Path) -> None:
    overrides = f"{world} {SHORT} privacy.example.epsilon=60"
    runtime = GridRuntime(LocalGrid(overrides), "x")
    task, user = Task(1, start_of(overrides), participations=9), runtime.users()[:1]

    def told() -> tuple[list[dict[str, torch.Tensor]], int]:
        updates = [release.update for release in runtime.train(task, user)]
        return updates, sum(event.steps for history in booked(home / LEDGER).values() for event in history)

    (first, paid), (second, then) = told(), told()
    assert then == paid > 0 and all(distance(a, b) == 0 for a, b in zip(first, second, strict=True))
    (answer,) = (home / ANSWERS).iterdir()
    whole = answer.read_bytes()
    for n, damaged in enumerate(
        (whole[:-1], b"0" * 64 + whole[64:]), 1
    ):  # what is not whole, or answered another order, counts for nothing
        answer.write_bytes(damaged)
        other, paid_again = told()
        assert paid_again == (n + 1) * paid and all(shift(a, b) > 1e-3 for a, b in zip(first, other, strict=True))
    assert repeats.known(home, "y", repeats.name(RecordDict())) is None


def test_the_last_answers_of_few_runs_are_kept_and_a_full_disk_ends_nothing(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    for run in range(repeats.RUNS + 2):
        repeats.keep(home, str(run), "a" * 64, RecordDict({"x": MetricRecord({"y": run})}))
        os.utime(home / ANSWERS / folder_name(str(run)), (run, run))
    assert {path.name for path in (home / ANSWERS).iterdir()} == {folder_name(str(run)) for run in range(2, repeats.RUNS + 2)}
    found = repeats.known(home, "3", "a" * 64)
    assert found is not None and found["x"] == {"y": 3} and repeats.known(home, "3", "b" * 64) is None
    (home / ANSWERS).rename(home / "gone")
    (home / ANSWERS).touch()
    repeats.keep(home, "9", "a" * 64, RecordDict())
    assert "would cost again" in caplog.text


def test_a_played_node_repeats_a_round_as_it_was_and_that_costs_nothing(world: str, home: Path) -> None:
    overrides = f"{world} {SHORT}"
    runtime = GridRuntime(LocalGrid(overrides, PLAYED), "x")
    task = Task(1, start_of(overrides), participations=2)
    first, second = ([release.update for release in runtime.train(task, runtime.users())] for _ in range(2))
    assert all(distance(a, b) == 0 for a, b in zip(first, second, strict=True))
    (ledger,) = home.rglob(LEDGER)
    with Ledger(ledger) as found:
        assert found.runs() == [scenario_hash(scenario_of(overrides))] and ledger.parent.name == folder_name("x")


def test_a_user_whose_budget_is_spent_in_an_earlier_run_is_not_trained_and_the_others_are(world: str, home: Path) -> None:
    home.mkdir()
    with Ledger(home / LEDGER) as ledger:
        ledger.spend([Spend("u3", "last year's", 1, "shared", Event(0.1, 5), False)])
    overrides = f"{world} {SHORT}"
    page = server_app.run(scenario_of(overrides), LocalGrid(overrides), home / "runs" / "x")
    rows = [json.loads(line) for line in (page.parent / "rounds.jsonl").read_text().splitlines()]
    assert [(row["users"], row["releases"], row["dropped"]) for row in rows] == [(USERS, USERS - 1, {})] * 2
    assert booked(home / LEDGER)["u3"] == (Event(0.1, 5),)
    trained = {path.parent.name for path in (home / "nodes").rglob("0*.safetensors")}
    assert folder_name("u3") not in trained and len(trained) == USERS - 1


def test_a_run_in_which_nobody_has_a_budget_ends_with_a_result_and_without_a_release(world: str, home: Path) -> None:
    overrides = f"{world} {SHORT} privacy.example.epsilon=2"
    home.mkdir()
    with Ledger(home / LEDGER) as ledger:
        ledger.spend([Spend(f"u{i}", "before", 1, "shared", Event(0.5, 5), False) for i in range(USERS + 2)])
    grid = LocalGrid(overrides)
    page = server_app.run(scenario_of(overrides), grid, home / "runs" / "x")
    last = checkpoint.latest(page.parent)
    assert last is not None and last.round == 2 and distance(last.shared, start_of(overrides)) == 0
    assert [row["releases"] for row in last.rows] == [0, 0] and page.is_file()
    assert all(set(reply.content) == set() for message, reply in grid.sent if message.metadata.message_type == "train")
    assert not list((home / "nodes").rglob("*.safetensors"))


def test_a_round_is_booked_before_anyone_trains(world: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any) -> Any:
        assert booked(home / LEDGER)
        raise RuntimeError("w17 w3 w8")

    monkeypatch.setattr(Trainer, "train", dies)
    overrides = f"{world} {SHORT}"
    runtime = GridRuntime(LocalGrid(overrides), "x")
    assert list(runtime.train(Task(1, start_of(overrides), participations=2), runtime.users())) == []
    assert len(booked(home / LEDGER)) == USERS
    assert runtime.failed.total() == NODES and not any("w17" in reason for reason in runtime.failed)


def test_a_node_bounds_what_it_spends_whatever_a_server_asks_for(world: str) -> None:
    bounded = [{**said, "epsilon": 5, "delta": 1e-5} for said in KEPT]
    for how in ("privacy=off", f"{SHORT} privacy.example.epsilon=6"):
        with pytest.raises(InputError, match=r"no node can take part: .*on this node|at most 5, as this node's config says"):
            GridRuntime(LocalGrid(f"{world} {how}", bounded)).users()
    overrides = f"{world} {SHORT} privacy.example.epsilon=5"
    assert len(GridRuntime(LocalGrid(overrides, bounded)).users()) == USERS
    with pytest.raises(InputError, match="noise in the node config must be 'system' or 'seed'"):
        GridRuntime(LocalGrid(overrides, [{"noise": "sed"}])).users()


def test_what_would_not_hold_is_refused_by_server_strategy_and_node(world: str, home: Path) -> None:
    for how, word in (
        ("privacy=user", "weights must be 'uniform'"),
        (f"{E} private_training.early_stopping=true", "early_stopping"),
    ):
        overrides = f"{world} {how}"
        with pytest.raises(InputError, match=word):
            server_app.run(scenario_of(overrides), LocalGrid(overrides), home / "runs" / "x")
        assert not home.exists(), "a refusal leaves nothing behind"
        with pytest.raises(InputError, match=word):
            HomingStrategy(scenario_of(overrides))
        with pytest.raises(InputError, match=f"no node can take part: .*{word}"):
            GridRuntime(LocalGrid(overrides)).users()


def test_a_strategy_of_flowers_kind_runs_under_the_guarantee_too(world: str, home: Path) -> None:
    overrides = f"{world} {SHORT}"
    grid = LocalGrid(overrides)
    result = HomingStrategy(scenario_of(overrides)).start(grid, ArrayRecord(start_of(overrides)), 2)
    assert [set(said) for said in result.train_metrics_clientapp.values()] == [{"users", "dropped", "update_norm"}] * 2
    assert result.evaluate_metrics_clientapp == {} and len(booked(home / LEDGER)) == USERS


# ---------------------------------------------------------------------- taint
def uploaded(world: str, how: str, folder: Path, monkeypatch: pytest.MonkeyPatch, poison: bool) -> tuple[list[bytes], int]:
    """The bytes of all answers to one order, and how many private numbers were put to NaN after local training."""
    spoilt, draws, real = itertools.count(), itertools.count(), PrivateStore.save_parts
    client_app._LOADED.clear()

    def save(self: PrivateStore, user: str, round_: int, parts: Any, made: Any) -> None:
        real(self, user, round_, parts, made)
        for value in (v for state in parts.values() for v in state.values()) if poison else ():
            value.fill_(torch.nan)
            next(spoilt)

    with monkeypatch.context() as patch:
        patch.setenv("HOMING_HOME", str(folder))
        patch.setattr(noises, "entropic", lambda: keyed("the system's", next(draws)))
        patch.setattr(PrivateStore, "save_parts", save)
        overrides = f"{world} {how}"
        runtime = GridRuntime(grid := LocalGrid(overrides), "x")
        task = Task(1, start_of(overrides) if "local_only" not in how else {}, participations=2, cohort=USERS)
        list(runtime.train(task, runtime.users()))
        assert not runtime.failed
    client_app._LOADED.clear()
    said = [
        recorddict_to_proto(r.content).SerializeToString(deterministic=True) for m, r in grid.sent if m.metadata.message_type == "train"
    ]
    return said, next(spoilt)


PRIVATE = [name for name in SCHEMES if any("private" in phase.moves for phase in build(name, {}).phases)]


@pytest.mark.parametrize(("scheme", "aggregator"), [*((scheme, "fedit") for scheme in PRIVATE), ("dual", "flower.FedMedian")])
def test_private_tensors_that_are_no_number_after_training_leave_the_uploads_bytes_unchanged(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, aggregator: str
) -> None:
    how = f"{SHORT} scheme={scheme} aggregator={aggregator}"
    if build(scheme, {}).clusters > 1:  # which no guarantee takes: counters then leave too, and seconds are never the same twice
        how += " privacy=off"
        for module in ("node", "answers"):
            monkeypatch.setattr(f"client.{module}.time", SimpleNamespace(perf_counter=lambda: 0.0))
    clean, none = uploaded(world, how, tmp_path / "clean", monkeypatch, poison=False)
    spoilt, some = uploaded(world, how, tmp_path / "spoilt", monkeypatch, poison=True)
    assert none == 0 and some >= 4 * USERS
    assert len(clean) == NODES and clean == spoilt
    states = private(tmp_path / "clean").values()
    secrets = [value.numpy().tobytes() for state in states for name, value in state.items() if name != CHOICE]  # a single 0 or 1
    secrets += [name.removeprefix("shared/").encode() for state in states for name in state]
    assert len(secrets) >= 8 * USERS and not any(secret in said for secret in secrets for said in clean)

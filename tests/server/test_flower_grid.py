"""The same scenario over Flower's messages gives what it gives in one process without them."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import answers as client_app
from client import wire
from client.private import folder_name
from client.wire import encode_releases
from configs.errors import InputError
from server import app as server_app
from server import grid as server_grid
from server.grid import GridRuntime, among, meet, releases
from server.report.files import read_rounds, validations
from strategies.base import Release, Task
from tests.server.flower_world import KEPT, NODES, RUN, USERS, LocalGrid, distance, fused, private, scenario_of, shift

# Nodes add up in another order than one process does. AdamW makes of that up to 1e-3 of what the adapters move, SGD 1e-5.
TOLERANCE = {"adamw": 2e-3, "sgd": 5e-5}
pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize(
    ("scheme", "aggregator", "optimizer"),
    [("dual", "fedit", "adamw"), ("dual", "fedit", "sgd"), ("dual", "ffa", "sgd"), ("dual", "flower.FedAvg", "sgd"),
     ("fedsa", "fedit", "adamw"), ("fedsa", "flower.FedAvg", "sgd")],
)  # fmt: skip
def test_three_nodes_of_flower_and_one_fused_pass_end_at_the_same_adapters(
    world: str, home: Path, tmp_path: Path, scheme: str, aggregator: str, optimizer: str
) -> None:
    rate = {"adamw": 0.01, "sgd": 0.3}[optimizer]
    trained = " ".join(f"{x}_training.optimizer={optimizer} {x}_training.lr={rate}" for x in ("shared", "private"))
    overrides = f"{world} scheme={scheme} aggregator={aggregator} users_per_round=5 personalize=1 {trained}"
    scenario = scenario_of(overrides)
    here, node = fused(scenario, tmp_path / "fused")
    start = node.split.shared_start()
    table = node.evaluate(Task(here.round + 1, here.shared), "test", ("base", "shared", "shared_private", "majority"))
    node.close()
    page = server_app.run(scenario, LocalGrid(overrides), home / "runs" / "x")
    there = server_app.checkpoint.latest(home / "runs" / "x")
    assert page.is_file() and there is not None and there.round == 4
    assert (moved := shift(here.shared, start)) > 1e-3
    assert distance(here.shared, there.shared) < TOLERANCE[optimizer] * moved
    mine, theirs = private(tmp_path / "fused"), private(home / "nodes" / folder_name(str(RUN)))
    assert mine.keys() == theirs.keys() and len(mine) >= USERS
    assert max(distance(mine[user], theirs[user]) for user in mine) < TOLERANCE[optimizer] * moved
    again = GridRuntime(LocalGrid(overrides), str(RUN)).evaluate(
        Task(5, there.shared), "test", ("base", "shared", "shared_private", "majority")
    )
    assert [list(row) for row in again] == [list(row) for row in table]
    for ours, row in zip(table, again, strict=True):
        assert row == pytest.approx(ours, abs=1e-4, nan_ok=True)
    for ours, row in zip(here.rows, there.rows, strict=True):
        for name in ("users", "releases", "tokens", "steps", "dropped"):
            assert ours[name] == row[name], name
        assert row["train_loss"] == pytest.approx(ours["train_loss"], abs=1e-4)
        assert row.get("validation", {}).keys() == ours.get("validation", {}).keys()


@pytest.mark.parametrize("aggregator", ["fedit", "median"])  # one sum of a node, and a release of each user
def test_scores_ride_with_the_next_training_and_are_what_an_exchange_of_their_own_says(
    world: str, home: Path, tmp_path: Path, aggregator: str
) -> None:
    usual = f"{world} aggregator={aggregator} evaluate_every=1"
    said = {"apart": usual, "along": f"{usual} evaluate_along=true"}
    rows, asked = {}, {}
    for name, overrides in said.items():
        server_app.run(scenario_of(overrides), grid := LocalGrid(overrides), home / "runs" / name)
        rows[name] = read_rounds(home / "runs" / name)
        asked[name] = {m.metadata.group_id for m, _ in grid.sent if m.metadata.message_type == "evaluate"}
        shutil.rmtree(home / "nodes")
    here, node = fused(scenario_of(said["along"]), tmp_path / "fused")
    node.close()
    assert asked == {"apart": {"2", "3", "4"}, "along": {"4"}}
    for before, row, mine in zip(rows["apart"], rows["along"][1:], here.rows[1:], strict=False):
        assert row["validation_before"].keys() == mine["validation_before"].keys() == {"shared", "shared_private"}
        for name, want in before["validation"].items():
            assert row["validation_before"][name] == pytest.approx(want, abs=1e-4)
            assert mine["validation_before"][name] == pytest.approx(want, abs=1e-4)
    assert ["validation_before" in row for row in rows["along"]] == [False, True, True]
    assert [at for at, _ in validations(rows["along"])] == [1, 2, 3] == [at for at, _ in validations(rows["apart"])]


def test_a_node_sends_one_sum_where_the_aggregator_is_linear_and_a_release_per_user_elsewhere(world: str) -> None:
    for name, each in (("fedit", 1), ("flower.FedMedian", 0)):
        grid = LocalGrid(f"{world} aggregator={name}", [{"users": "u0, u1, u2, u3, u4"}])
        runtime = GridRuntime(grid, name)
        found = list(runtime.train(Task(1, _start(f"{world} aggregator={name}")), runtime.users()))
        assert len(found) == (each or len(runtime.users())) and sum(r.users for r in found) == len(runtime.users()) > 2


def test_nothing_but_the_declared_records_leaves_a_node_and_no_private_number_is_in_them(world: str, home: Path) -> None:
    grid = LocalGrid(world)
    runtime = GridRuntime(grid, "x")
    task = Task(1, _start(world))
    list(runtime.train(task, runtime.users()))
    replies = [reply for message, reply in grid.sent if message.metadata.message_type == "train"]
    assert len(replies) == NODES
    hidden = {value.numpy().tobytes() for state in private(home / "nodes").values() for value in state.values()}
    assert len(hidden) > 2 * USERS
    for reply in replies:
        assert set(reply.content) == {"update.0", "release.0"}
        sent = wire.tensors_of(reply.content, "update.0")
        assert sent.keys() == task.shared.keys() and set(reply.content["update.0"]) == {"tensors"}
        assert set(reply.content["release.0"]) == {"weight", "users", "tokens", "examples", "loss", "steps", "seconds", "load"}
        assert not hidden & {value.numpy().tobytes() for value in sent.values()}
    for message, reply in grid.sent:
        if message.metadata.message_type == "query":
            assert {k: set(v) for k, v in reply.content.items()} == {"kept": {"users", "partitions", "simulated", "lets"}}


def test_the_base_is_loaded_once_for_all_nodes_of_a_process(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client_app._LOADED.clear()
    opened = []
    real = client_app.open_node
    monkeypatch.setattr(client_app, "open_node", lambda *args: opened.append(args) or real(*args))
    for overrides in (world, f"{world} seed=1"):
        runtime = GridRuntime(LocalGrid(overrides), "x")
        for number in (1, 2):
            list(runtime.train(Task(number, _start(overrides)), runtime.users()))
    assert len(opened) == 2
    assert opened[0][2] is None and opened[1][2] is not None  # another scenario on the same base keeps the base
    hooks = sum(len(module._forward_hooks) for module in opened[1][2].model.modules())
    assert hooks == len(client_app._LOADED[0].tower.handles) - 1


def test_a_node_that_fails_or_is_silent_is_left_out_of_the_round(world: str, caplog: pytest.LogCaptureFixture) -> None:
    grid = LocalGrid(world)
    runtime = GridRuntime(grid, "x")
    users = runtime.users()
    broken, silent, whole = runtime.homes()
    grid.broken, grid.silent = {broken}, {silent}
    with caplog.at_level("WARNING", "flwr"):
        found = list(runtime.train(Task(1, _start(world)), users))
    assert [r.users for r in found] == [len(runtime.homes()[whole])]
    assert sorted(runtime.failed.values()) == [1, 1] and any("no more memory" in reason for reason in runtime.failed)
    assert "left out" in caplog.text


def test_a_node_with_another_base_model_or_tokenizer_trains_and_scores_nobody(world: str, home: Path, tmp_path: Path) -> None:
    server_app.run(scenario_of(f"{world} rounds=1"), LocalGrid(f"{world} rounds=1"), tmp_path / "run")
    told = json.loads((tmp_path / "run" / "flower.json").read_text())["origin"]
    assert len(told) == 2 and tuple(told) == client_app._LOADED[0].origin[:2]
    for which, name in enumerate(("base model", "tokenizer")):
        other = tuple("f" * 64 if i == which else said for i, said in enumerate(told))
        runtime = GridRuntime(LocalGrid(world), "y", origin=other)
        assert list(runtime.train(Task(1, _start(world)), runtime.users())) == []
        said = f"the run is on {name} ffffffffffff, and this node has {told[which][:12]}"
        assert sum(times for reason, times in runtime.failed.items() if said in reason) == NODES
        assert runtime.evaluate(Task(1, _start(world)), "test", ("base",)) == [] and not private(home / "nodes" / folder_name("y"))
    runtime = GridRuntime(LocalGrid(world), "y", origin=tuple(told))
    assert list(runtime.train(Task(1, _start(world)), runtime.users()))


def test_a_users_release_that_is_no_number_is_not_added_to_the_others(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = client_app.Node.train

    def poisoned(self: Any, task: Task, users: Any) -> Iterator[Release]:
        for user, release in zip(users, real(self, task, users), strict=True):
            yield Release({n: v * torch.nan for n, v in release.update.items()}, release.weight) if user == "u3" else release

    monkeypatch.setattr(client_app.Node, "train", poisoned)
    runtime = GridRuntime(LocalGrid(world), "x")
    users = runtime.users()
    assert "u3" in users
    found = list(runtime.train(Task(1, _start(world)), users))
    assert sum(r.users for r in found) == USERS - 1
    assert all(bool(v.isfinite().all()) for r in found for v in r.update.values())


def test_an_answer_that_cannot_be_read_or_speaks_for_too_many_is_left_out() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    good = encode_releases([Release({"w": torch.ones(2)}, 2.0, 1)], {"w": torch.zeros(2)})
    many = encode_releases([Release({"w": torch.ones(2)}, 2.0, 5)], {"w": torch.zeros(2)})
    extra = RecordDict({**good, "diary": ArrayRecord({"w": torch.ones(2)})})
    nan = RecordDict({**good, "release.0": MetricRecord({"weight": float("nan"), "users": 1})})
    replies = [Message(c, reply_to=Message(RecordDict(), n, "train")) for n, c in enumerate([good, many, extra, nan])]
    failed: Counter[str] = Counter()
    found = list(releases({n: ["a", "b"] for n in range(4)}, Task(1, {"w": torch.zeros(2)}), replies, failed))
    assert len(found) == 1 and found[0].weight == 2.0
    assert failed.total() == 3


def test_the_answers_are_taken_in_the_order_of_the_nodes_first_users(world: str) -> None:
    runtime = GridRuntime(LocalGrid(world, KEPT[::-1]), "x")
    firsts = [kept[0] for kept in runtime.homes().values()]
    assert firsts == sorted(firsts)
    weights = [r.weight for r in runtime.train(Task(1, _start(world)), runtime.users())]
    straight = GridRuntime(LocalGrid(world), "y")
    assert weights == [r.weight for r in straight.train(Task(1, _start(world)), straight.users())]
    assert len(set(weights)) == NODES


def test_the_server_waits_for_nodes_that_register_late(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_grid, "POLL", 0.0)
    grid = LocalGrid(world)
    grid.seen = iter([0, 1, 1, 2, 3])  # type: ignore[assignment]
    assert sum(map(len, GridRuntime(grid).homes().values())) == USERS


def test_too_few_nodes_a_user_in_two_places_and_a_wrong_path_are_one_sentence(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_grid, "POLL", 0.0)
    grid = LocalGrid(world, KEPT[:2])
    grid.seen = iter(lambda: 2, None)  # type: ignore[assignment]
    with pytest.raises(InputError, match="for 3 nodes, and 2 came"):
        meet(grid, 0, patience=0.0, timeout=1.0)
    with pytest.raises(InputError, match=r"user 'u\d' is kept by two nodes"):
        GridRuntime(LocalGrid(world, [KEPT[0], KEPT[0], KEPT[1]])).users()
    with pytest.raises(InputError, match=r"no node can take part: .*does not exist"):
        GridRuntime(LocalGrid(f"{world} data.path=/nowhere")).users()
    with pytest.raises(InputError, match=r"no node can take part: .*no user 'nobody'"):
        GridRuntime(LocalGrid(world, [{"users": "nobody"}])).users()


def test_a_node_may_be_told_which_users_it_keeps(world: str) -> None:
    everyone = GridRuntime(LocalGrid(world, [{}])).users()
    assert len(everyone) == USERS
    first, second, *_ = everyone
    runtime = GridRuntime(LocalGrid(world, [{"users": f"{second}, {first}"}]), nodes=1)
    assert list(runtime.users()) == [first, second]
    assert among(runtime.homes(), [second]) == {next(iter(runtime.homes())): [second]}


def test_two_machines_keep_their_data_under_paths_of_their_own(world: str, tmp_path: Path) -> None:
    users = {user: Path(world.rpartition("data.path=")[2]) / f"{user}.jsonl" for user in ("u0", "u1", "u2", "u3")}
    for user, path in users.items():
        (tmp_path / f"ward{user[1:] > '1'}").mkdir(exist_ok=True)
        (tmp_path / f"ward{user[1:] > '1'}" / path.name).write_text(path.read_text())
    wards = [{"data-path": str(tmp_path / f"ward{late}"), "device": "cpu"} for late in (False, True)]
    overrides = f"{world} data.path=/nowhere data.unseen_users=0 engine.device=cuda:99"
    runtime = GridRuntime(LocalGrid(overrides, wards), "x", nodes=2)
    assert list(map(list, runtime.homes().values())) == [["u0", "u1"], ["u2", "u3"]]
    assert sum(r.users for r in runtime.train(Task(1, _start(world)), runtime.users())) == 4


def test_private_adapters_are_found_again_when_their_users_are_spread_over_other_nodes(world: str) -> None:
    start = _start(world)
    trained = GridRuntime(LocalGrid(world), "x")
    list(trained.train(Task(1, start), trained.users()))

    def rows(nodes: int, run: str) -> list[float]:
        kept = [{"partition-id": index, "num-partitions": nodes} for index in range(nodes)]
        found = GridRuntime(LocalGrid(world, kept), run).evaluate(Task(2, start), "test", ("shared_private",))
        return [row["shared_private.nll"] for row in found if row["seen"]]

    assert rows(2, "x") == pytest.approx(rows(NODES, "x"), abs=1e-4)
    assert all(abs(a - b) > 1e-3 for a, b in zip(rows(2, "x"), rows(2, "untrained"), strict=True))


def test_a_partition_that_does_not_exist_is_one_sentence(world: str) -> None:
    with pytest.raises(InputError, match=r"no node can take part: .*partition-id must be between 0 and num-partitions - 1 = 2, got 3"):
        GridRuntime(LocalGrid(world, [{"partition-id": 3, "num-partitions": 3}])).users()


def test_a_run_that_was_stopped_goes_on_with_the_same_private_adapters_in_a_later_flower_run(world: str, home: Path) -> None:
    overrides = f"{world} users_per_round=5"
    straight = server_app.run(scenario_of(overrides), LocalGrid(overrides), home / "runs" / "a").parent
    whole = server_app.rounds.run

    def stopped(scenario: Any, runtime: Any, *args: Any) -> Any:
        real = runtime.train
        runtime.train = lambda task, users: real(task, users) if task.round < 3 else (_ for _ in ()).throw(KeyboardInterrupt)
        return whole(scenario, runtime, *args)

    server_app.rounds.run, folder = stopped, home / "runs" / "b"
    try:
        with pytest.raises(KeyboardInterrupt):
            server_app.run(scenario_of(overrides), LocalGrid(overrides, run_id=78), folder)
    finally:
        server_app.rounds.run = whole
    server_app.run(scenario_of(overrides), LocalGrid(overrides, run_id=79), folder)
    assert json.loads((folder / "flower.json").read_text())["run"] == "78"
    assert (folder / "users.csv").read_text() == (straight / "users.csv").read_text()
    assert not (home / "nodes" / folder_name("79")).exists()


def _start(overrides: str) -> dict[str, torch.Tensor]:
    from client import base as bases
    from client.split import split

    scenario = scenario_of(overrides)
    return split(scenario, bases.load(scenario.model, "cpu")).shared_start()

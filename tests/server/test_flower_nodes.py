"""Nodes come and leave while a run goes on, answer late or not at all, and a round counts only where enough of them answered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

from client import wire
from client.private import PrivateStore, folder_name
from configs.errors import InputError
from server import aggregation, checkpoint, rounds
from server import app as server_app
from server import grid as server_grid
from server.grid import TRIES, GridRuntime
from strategies.base import Release, Task
from tests.server.flower_world import USERS, LocalGrid, distance, fused, scenario_of, shift

pytestmark = pytest.mark.usefixtures("home")
WARDS = ({"users": "ann,ben"}, {"users": "cat"}, {"users": "dan,eve,fay"})
TASK = Task(1, {"w": torch.zeros(2)})


@pytest.fixture
def wards(monkeypatch: pytest.MonkeyPatch) -> LocalGrid:
    """Three nodes without a model: each releases ones for the users that it is asked for."""

    def client(message: Message, context: Context) -> Message:
        said = context.node_config
        if message.metadata.message_type == "query":
            kept = wire.Kept(tuple(str(said["users"]).split(",")), simulated=bool(said.get("played", False)), lets=("scores",))
            return Message(wire.encode_kept(kept), reply_to=message)
        order = wire.decode_order(message.content)
        each = [Release({"w": torch.ones(2)}, 1.0, 1, {}) for _ in order.users]
        return Message(wire.encode_releases(each, order.task.shared), reply_to=message)

    monkeypatch.setattr(server_grid, "POLL", 0.0)
    grid = LocalGrid("", WARDS)
    grid.client = client  # type: ignore[assignment] - what is asked of it
    return grid


def nodes(grid: LocalGrid) -> list[int]:
    return list(grid.contexts)


def trained(grid: LocalGrid) -> list[int]:
    """The nodes that were asked to train, in turn."""
    return [message.metadata.dst_node_id for message, _ in grid.sent if message.metadata.message_type == "train"]


def test_a_node_that_has_left_is_asked_nothing_and_its_users_are_kept_in_mind(wards: LocalGrid) -> None:
    runtime, (first, *_) = GridRuntime(wards, "x"), nodes(wards)
    users = runtime.users()
    wards.away = {first}
    assert len(list(runtime.train(TASK, users))) == 4 and first not in trained(wards)
    assert runtime.users() == users and first not in runtime.homes()
    wards.away = set()
    assert len(list(runtime.train(TASK, users))) == 6 and first in trained(wards)


def test_a_node_that_comes_back_under_another_id_brings_its_users_along(wards: LocalGrid) -> None:
    runtime, (first, *_) = GridRuntime(wards, "x"), nodes(wards)
    users = runtime.users()
    wards.away = {first}
    wards.join(2000, WARDS[0])
    assert len(list(runtime.train(TASK, users))) == 6 and runtime.users() == users
    assert runtime.homes()[2000] == ("ann", "ben") and first not in runtime.kept()


def test_a_machine_that_takes_over_some_users_leaves_the_others_where_they_were(wards: LocalGrid) -> None:
    runtime, (first, *_) = GridRuntime(wards, "x"), nodes(wards)
    users = runtime.users()
    wards.away = {first}
    wards.join(2000, {"users": "ann"})
    runtime.look()
    assert runtime.kept()[first].users == ("ben",) and runtime.kept()[2000].users == ("ann",) and runtime.users() == users


def test_new_users_may_join_and_whoever_claims_those_of_a_node_that_is_there_waits_until_it_is_gone(wards: LocalGrid) -> None:
    runtime, (first, *_) = GridRuntime(wards, "x"), nodes(wards)
    assert len(runtime.users()) == 6
    wards.join(2000, {"users": "gus"})
    wards.join(3000, {"users": "ann,hal"})
    assert len(list(runtime.train(TASK, ["ann", "gus"]))) == 2
    assert runtime.homes()[2000] == ("gus",) and 3000 not in runtime.homes() and "hal" not in runtime.users()
    assert runtime.failed[f"keeps users of node {first}, which is there"] == 1
    wards.away = {first}
    runtime.look()
    assert runtime.homes()[3000] == ("ann", "hal") and runtime.kept()[first].users == ("ben",)


def test_a_node_that_is_only_played_joins_no_run_of_real_ones(wards: LocalGrid) -> None:
    runtime = GridRuntime(wards, "x")
    runtime.users()
    wards.join(2000, {"users": "gus", "played": True})
    runtime.look()
    assert "gus" not in runtime.users() and not runtime.simulated()


def test_a_node_that_cannot_say_who_it_keeps_is_asked_once(wards: LocalGrid) -> None:
    runtime = GridRuntime(wards, "x")
    runtime.users()
    wards.join(2000, {})
    for _ in range(3):
        runtime.look()
    assert [m.metadata.dst_node_id for m, _ in wards.sent].count(2000) == 1


@pytest.mark.parametrize(("quorum", "needed"), [(0.0, 0), (0.5, 3), (0.51, 4), (1.0, 6)])
def test_a_round_counts_where_a_quorum_answers_and_else_is_asked_for_again_and_not_for_ever(
    wards: LocalGrid, quorum: float, needed: int
) -> None:
    sizes = {node: len(said["users"].split(",")) for node, said in zip(nodes(wards), WARDS, strict=True)}
    for silent in ((), nodes(wards)[:1], nodes(wards)[:2], nodes(wards)[2:], nodes(wards)):
        wards.silent, wards.sent = set(silent), []
        runtime = GridRuntime(wards, "x", quorum=quorum)
        heard = 6 - sum(sizes[node] for node in silent)
        if heard >= needed:
            assert len(list(runtime.train(TASK, runtime.users()))) == heard
            continue
        with pytest.raises(InputError, match=r"round 1 was asked for 3 times .*no answer in time.* the same command goes on"):
            list(runtime.train(TASK, runtime.users()))
        assert len(trained(wards)) == TRIES * (3 - len(silent))  # those who answer do so each time
    assert list(GridRuntime(wards, "x", quorum=quorum).train(TASK, [])) == []


def test_a_quorum_that_is_away_is_waited_for(wards: LocalGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, (first, second, third) = GridRuntime(wards, "x", quorum=0.5), nodes(wards)
    users, runtime.patience = runtime.users(), 0.0
    wards.away = {first, third}
    with pytest.raises(InputError, match=r"round 1: waited 0 s for nodes of 3 of its 6 users, and those of 1 are there; nothing"):
        list(runtime.train(TASK, users))
    assert trained(wards) == []
    looks = iter(range(5))
    real = GridRuntime.look

    def later(self: GridRuntime) -> None:
        wards.away = set() if next(looks) == 3 else wards.away
        real(self)

    monkeypatch.setattr(GridRuntime, "look", later)
    runtime.patience = 60.0
    assert len(list(runtime.train(TASK, users))) == 6 and trained(wards) == [first, second, third]


@pytest.mark.parametrize(
    ("config", "said"),
    [({"nodes": 1.5}, "nodes in the run config must be a whole number from 0, got 1.5"),
     ({"quorum": 1.1}, "quorum in the run config must be a number from 0 to 1, got 1.1"),
     ({"deadline": "soon"}, "deadline in the run config must be a number from 0, got 'soon'"),
     ({"patience": -1.0}, "patience in the run config must be a number from 0, got -1.0"),
     ({"quorum": True}, "quorum in the run config must be a number from 0 to 1, got True")],
)  # fmt: skip
def test_what_cannot_be_waited_for_is_one_sentence(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        server_app.terms(config)
    assert str(error.value) == said


def test_a_run_whose_nodes_come_and_go_ends_where_one_process_ends(world: str, home: Path, tmp_path: Path) -> None:
    """Between rounds a node leaves and comes back as another; in the second round one is silent the first time it is asked."""
    trained = " ".join(f"{x}_training.optimizer=sgd {x}_training.lr=0.3" for x in ("shared", "private"))
    overrides = f"{world} rounds=2 evaluate_every=0 personalize=1 {trained}"
    scenario = scenario_of(overrides)
    here, node = fused(scenario, tmp_path / "fused")
    start = node.split.shared_start()
    node.close()
    grid = LocalGrid(overrides)
    first, second, third = nodes(grid)
    real: Callable[..., list[Message]] = grid.send_and_receive

    def send(messages: Any, *, timeout: float | None = None) -> list[Message]:
        orders = [m for m in messages if m.metadata.message_type == "train"]
        if orders and orders[0].metadata.group_id == "2":
            grid.silent = set() if grid.silent or first in grid.away else {second}
            if first not in grid.away:
                grid.away.add(first)
                grid.join(2000, grid.contexts[first].node_config)
                grid.silent = {second}
        return real(messages, timeout=timeout)

    grid.send_and_receive = send  # type: ignore[method-assign]
    runtime = GridRuntime(grid, "x", quorum=1.0)
    there = rounds.run(scenario, runtime, aggregation.build(scenario), start, tmp_path / "there")
    again = [m.metadata.dst_node_id for m, _ in grid.sent if m.metadata.message_type == "train" and m.metadata.group_id == "2"]
    assert again == [first, third, 2000, second, third] and checkpoint.latest(tmp_path / "there") is not None
    assert distance(here.shared, there.shared) < 5e-5 * shift(here.shared, start)
    mine, theirs = PrivateStore(tmp_path / "fused" / "private"), PrivateStore(home / "nodes" / folder_name("x"))
    for user in runtime.users():
        one, other = mine.load(user, 9), theirs.load(user, 9)
        assert one is not None and other is not None and distance(one, other) < 5e-5 * shift(here.shared, start)
    assert len(runtime.users()) == USERS

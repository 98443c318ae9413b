"""What a release becomes on its way is the same in one process and over Flower, and smaller; what is left out is kept with its user."""

from pathlib import Path
from typing import Any

import pytest
import torch

from client import wire
from client.private import PrivateStore, folder_name
from client.sending import OWED
from client.store.manifest import PRIVATE
from configs.errors import InputError
from server import app as server_app
from server import checkpoint
from server.grid import GridRuntime
from strategies.base import Task
from strategies.privacy import rules
from strategies.privacy.clipping import clip
from strategies.tree import State, nbytes, norm
from tests.server.flower_world import KEPT, NODES, PLAYED, RUN, LocalGrid, distance, fused, private, scenario_of, shift

ALONE = (  # one user a pass: equal sums to the last bit
    "engine.tokens_per_pass=1 rounds=2 evaluate_every=0 controls=[shared] data.users=4 data.unseen_users=0"
)
WHOLE = "shared_training.batch=6 private_training.batch=6 shared_training.optimizer=sgd shared_training.lr=0.3"
SGD = " ".join(f"{x}_training.optimizer=sgd {x}_training.lr=0.3" for x in ("shared", "private"))
KINDS = {
    "bf16": f"wire.kind=bf16 wire.down=bf16 wire.nodes={NODES}",
    "int8": f"wire.kind=int8 wire.nodes={NODES} users_per_round=3 sampling=cyclic",
    "topk": f"wire.kind=topk wire.keep=0.05 users_per_round=3 sampling=cyclic rounds=3 {SGD}",
    "int8 under E": f"wire.kind=int8 wire.nodes={NODES} privacy=example privacy.example.epsilon=200 {WHOLE}",
    "topk under U": "wire.kind=topk wire.keep=0.05 privacy=user weights=uniform privacy.user.clip=0.05 privacy.user.epsilon=2000 "
    + SGD,
    "fp16 of each user under U, local": "wire.kind=fp16 aggregator=median privacy=user weights=uniform privacy.user.mechanism=local",
}
TIMES = {"bf16": 1.9, "fp16": 1.1, "int8": 1.9, "topk": 4}  # smaller than float32, of tensors of some 70 numbers
pytestmark = pytest.mark.usefixtures("home")


def trained(grid: LocalGrid) -> list[tuple[wire.Order, Any]]:
    return [(wire.decode_order(m.content), reply) for m, reply in grid.sent if m.metadata.message_type == "train"]


@pytest.mark.parametrize("kind", KINDS)
def test_pressed_releases_end_at_the_same_adapter_over_three_nodes_and_fused(world: str, home: Path, tmp_path: Path, kind: str) -> None:
    overrides = f"{world} {ALONE} {KINDS[kind]}"
    scenario, grid = scenario_of(overrides), LocalGrid(overrides, PLAYED)
    rules.refuse(scenario)
    here, node = fused(scenario, tmp_path / "fused")
    moved = shift(here.shared, node.split.shared_start())
    node.close()
    server_app.run(scenario, grid, home / "runs" / "x")
    there = checkpoint.latest(home / "runs" / "x")
    assert there is not None and moved > 1e-3
    assert distance(here.shared, there.shared) <= (5e-5 * moved if kind.startswith("topk") else 0.0)  # sums in another order
    mine, theirs = private(tmp_path / "fused"), private(home / "nodes" / folder_name(str(RUN)))
    assert mine.keys() == theirs.keys() and any(OWED in path for path in mine) == ("topk" in kind)
    assert max(distance(mine[path], theirs[path]) for path in mine) <= 1e-3 * moved
    for order, reply in trained(grid):
        whole = nbytes(order.task.shared)
        for name in reply.content.array_records:
            if name.startswith("update"):
                beside = name.replace("update", "beside")
                sent = [nbytes(wire.tensors_of(reply.content, part)) for part in (name, beside) if part in reply.content]
                assert sum(sent) * TIMES[kind.split()[0]] < whole
    for row in there.rows:
        said = [(m, r) for m, r in grid.sent if m.metadata.message_type == "train" and m.metadata.group_id == str(row["round"])]
        assert row["bytes_up"] == sum(wire.size(r.content) for _, r in said) > 0
        assert row["bytes_down"] == sum(wire.size(m.content) for m, _ in said) > 0
    for ours, theirs in zip(here.rows, there.rows, strict=True) if "topk" not in kind else ():
        envelopes = ours["users"] * (2 * len(there.shared) * 260 + 400)  # one process counts the numbers alone
        assert 0 < theirs["bytes_up"] - ours["bytes_up"] < envelopes


def test_what_was_not_pressed_is_sent_as_it_is(world: str, home: Path) -> None:
    grid = LocalGrid(f"{world} {ALONE}")
    server_app.run(scenario_of(f"{world} {ALONE}"), grid, home / "runs" / "x")
    for order, reply in trained(grid):
        assert {value.dtype for value in wire.tensors_of(reply.content, "update.0").values()} == {torch.float32}
        assert wire.tensors_of(wire.encode_shared(order.task.shared), "shared").keys() == order.task.shared.keys()


def test_what_a_round_cost_on_the_wire_is_counted_without_its_evaluation_which_is_counted_apart(world: str, home: Path) -> None:
    overrides = f"{world} rounds=1 evaluate_every=1 personalize=1"
    grid = LocalGrid(overrides)
    server_app.run(scenario_of(overrides), grid, home / "runs" / "x")
    there = checkpoint.latest(home / "runs" / "x")
    assert there is not None and len(there.rows) == 2
    for row, number in zip(there.rows, ("1", "2"), strict=True):
        both = {kind: [(m, r) for m, r in grid.sent if m.metadata.message_type == kind] for kind in ("train", "evaluate")}
        up, down = (
            sum(wire.size(x.content) for x in said)
            for said in zip(*((r, m) for m, r in both["train"] if m.metadata.group_id == number), strict=True)
        )
        assert (row["bytes_up"], row["bytes_down"]) == (up, down)
        asked = [m for m, _ in both["evaluate"] if m.metadata.group_id == str(int(number) + 1)]
        assert row["bytes_scored"] > sum(wire.size(m.content) for m in asked[:NODES]) > 0
    assert there.rows[1]["bytes_up"] < there.rows[0]["bytes_up"] / 4  # the last, private round sends no update


def test_under_u_the_numbers_are_left_out_before_the_clip_so_that_a_user_stays_within_the_bound(world: str) -> None:
    overrides = f"{world} {ALONE} {KINDS['topk under U']} privacy.user.clip=0.001"
    runtime = GridRuntime(LocalGrid(overrides, [{"partition-id": k, "num-partitions": 4} for k in range(4)]), "x")
    start = _start(overrides)
    for number in (1, 2):
        for release in runtime.train(Task(number, start, participations=2, bound=0.001, cohort=4, everyone=4), runtime.users()):
            assert 0.00099 < norm(release.update) <= 0.001 and clip(release.update, 0.001)[0] is release.update
            assert sum(int(v.count_nonzero()) for v in release.update.values()) < 0.06 * sum(v.numel() for v in start.values()) + 20


def test_what_was_left_out_counts_with_the_private_adapter_and_a_round_that_is_repeated_is_the_same(world: str, home: Path) -> None:
    overrides = f"{world} {ALONE} {KINDS['topk']} users_per_round=0"
    runtime = GridRuntime(LocalGrid(overrides, [{"noise": "seed"}]), "x")
    start, users = _start(overrides), runtime.users()[:2]

    def sent(number: int) -> State:
        return next(iter(runtime.train(Task(number, start), users))).update

    first, second = sent(1), sent(2)
    store = PrivateStore(home / "nodes" / folder_name("x"))
    parts = store.parts(users[0], 3)
    assert parts.keys() == {PRIVATE, OWED} and all(bool(v.any()) for v in parts[OWED].values())
    again = sent(2)
    assert all(torch.equal(v, second[n]) for n, v in again.items())
    assert all(torch.equal(v, parts[OWED][n]) for n, v in store.parts(users[0], 3)[OWED].items())
    assert any(not torch.equal(v, first[n]) for n, v in again.items())
    fresh = GridRuntime(LocalGrid(overrides, [{"noise": "seed"}]), "y")
    other = next(iter(fresh.train(Task(2, start), users))).update
    assert any(not torch.equal(v, second[n]) for n, v in other.items()), "without a memory another release"


def test_a_scheme_that_keeps_nothing_private_remembers_too(world: str, home: Path) -> None:
    overrides = f"{world} {ALONE} {KINDS['topk']} scheme=shared_only"
    runtime = GridRuntime(LocalGrid(overrides, KEPT), "x")
    list(runtime.train(Task(1, _start(overrides)), runtime.users()))
    store = PrivateStore(home / "nodes" / folder_name("x"))
    assert all(store.parts(user, 2).keys() == {OWED} for user in runtime.users())
    assert store.load(runtime.users()[0], 2) is None


def test_a_server_that_sums_clips_refuses_to_begin_with_a_rounding_after_them(world: str, home: Path) -> None:
    overrides = f"{world} {ALONE} privacy=user weights=uniform wire.kind=int8"
    with pytest.raises(InputError, match="rounds what a node sends after its users were clipped"):
        server_app.run(scenario_of(overrides), LocalGrid(overrides), home / "runs" / "x")
    assert not (home / "runs").exists()


def _start(overrides: str) -> dict[str, torch.Tensor]:
    from client import base as bases
    from client.split import split

    scenario = scenario_of(overrides)
    return split(scenario, bases.load(scenario.model, "cpu")).shared_start()

"""Secure sums over Flower's messages: what one process gives, whoever drops out, and nothing of one node in what the server gets."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from scipy import stats

from client import answers as client_app
from client import secure, secure_wire, wire
from client.node import open_node
from client.secure import Call
from client.secure_wire import Step
from client.wire import Order, WireError
from configs.errors import InputError
from server import aggregation, rounds
from server import app as server_app
from server.flower_strategy import HomingStrategy
from server.grid import GridRuntime
from server.secure import SecureRuntime
from server.secure_grid import SecureGridRuntime
from server.unmasking import STEPS
from simulations.fused import FusedRuntime
from strategies import aggregators
from strategies.base import Release, Task
from strategies.privacy.joint import Cohorts, Plan
from strategies.privacy.ledger import LEDGER, Ledger
from strategies.tree import State
from tests.server.flower_world import NODES, USERS, LocalGrid, distance, scenario_of, shift, through

SECURE = f"weights=uniform max_release_norm=1 privacy.secure=true privacy.masking.nodes={NODES} privacy.masking.threshold=0.6"
KINDS: dict[str, str] = dict(zip(STEPS, ("train.secure", "share", "mask", "reveal"), strict=True))
pytestmark = pytest.mark.usefixtures("home")


class Lossy(LocalGrid):
    """A grid on which some nodes are silent from a step on. Each sum's nodes are counted from 0 in the order of their first users."""

    def __init__(self, overrides: str, drop: dict[int, str] | None = None) -> None:
        super().__init__(overrides)
        self.drop = drop or {}
        self.order: list[int] = []
        self.gone: set[int] = set()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        if kept := [m for m in messages if m.metadata.message_type == "train.secure"]:
            self.order, self.gone = [m.metadata.dst_node_id for m in kept], set()
        for message in messages:
            step: Any = message.content.get("step")
            at = step["step"] if step else message.metadata.message_type
            self.gone |= {self.order[i] for i, name in self.drop.items() if KINDS[name] == at}
        return super().send_and_receive([m for m in messages if m.metadata.dst_node_id not in self.gone], timeout=timeout)


@pytest.fixture
def start(world: str) -> State:
    from client import base as bases
    from client.split import split

    scenario = scenario_of(world)
    return split(scenario, bases.load(scenario.model, "cpu")).shared_start()


def one(grid: LocalGrid, overrides: str, start: State, plan: Plan | None = None) -> list[Release]:
    """The releases of a round of everyone."""
    runtime = SecureGridRuntime(GridRuntime(grid, "x"), scenario_of(overrides), plan)
    bound = scenario_of(overrides).privacy.user.clip
    return list(runtime.train(Task(1, start, ("shared",), participations=3, bound=bound), runtime.users()))


def test_three_nodes_of_flower_and_one_process_end_at_equal_adapters_and_rows(world: str, home: Path, tmp_path: Path) -> None:
    overrides = f"{world} {SECURE} users_per_round=6 rounds=2 personalize=1"
    scenario = scenario_of(overrides)
    node = open_node(scenario, tmp_path / "private")
    begun = node.split.shared_start()
    here = rounds.run(scenario, SecureRuntime(FusedRuntime(node), scenario), aggregation.build(scenario), begun, tmp_path)
    node.close()
    server_app.run(scenario, LocalGrid(overrides), home / "runs" / "x")
    there = server_app.checkpoint.latest(home / "runs" / "x")
    assert there is not None and there.round == 3
    assert shift(here.shared, begun) > 1e-3 and distance(here.shared, there.shared) == 0.0
    for ours, row in zip(here.rows, there.rows, strict=True):
        for name in ("users", "releases", "tokens", "steps", "dropped", "train_loss"):
            assert ours[name] == row[name], name


@pytest.fixture
def sums(world: str, start: State) -> Callable[[dict[int, str]], list[Release]]:
    return lambda drop: one(Lossy(f"{world} {SECURE}", drop), f"{world} {SECURE}", start)


def test_a_node_that_drops_out_at_any_step_costs_its_users_and_no_round(sums: Callable[[dict[int, str]], list[Release]]) -> None:
    (whole,) = sums({})
    assert whole.users == USERS
    found = {step: sums({1: step})[0] for step in STEPS}
    assert {step: release.users for step, release in found.items()} == {"keys": 5, "shares": 5, "masked": 5, "reveal": USERS}
    assert distance(found["reveal"].update, whole.update) == 0.0
    assert distance(found["masked"].update, found["keys"].update) == 0.0 < distance(found["masked"].update, whole.update)


@pytest.mark.parametrize("step", STEPS)
def test_with_fewer_nodes_than_the_threshold_there_is_no_release(world: str, start: State, step: str) -> None:
    overrides = f"{world} {SECURE}"
    runtime = SecureGridRuntime(GridRuntime(Lossy(overrides, {0: step, 2: step}), "x"), scenario_of(overrides))
    assert list(runtime.train(Task(1, start, ("shared",)), runtime.users())) == []
    assert [reason for reason in runtime.inner.failed if "gives nothing" in reason]


def test_the_server_gets_masked_bytes_and_of_no_node_more(
    world: str, home: Path, start: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors: list[torch.Tensor] = []
    real = secure.begin
    monkeypatch.setattr(secure, "begin", lambda folder, terms, me, v: (vectors.append(v), real(folder, terms, me, v))[1])
    grid = LocalGrid(f"{world} {SECURE}")
    (release,) = one(grid, f"{world} {SECURE}", start)
    answers = [reply.content for message, reply in grid.sent if message.metadata.message_type != "query"]
    assert len(vectors) == NODES and len(answers) == 4 * NODES
    assert all(set(content) == {"masking"} for content in answers)
    sent = [secure_wire.decode_answer(content) for content in answers]
    masked = [np.frombuffer(blob, "<u4") for message in sent if len(message) > 4 * len(vectors[0]) for blob in [_blob(message)]]
    assert len(masked) == NODES and not {m.tobytes() for m in masked} & {v.numpy().astype("<u4").tobytes() for v in vectors}
    for vector_M in masked:
        assert stats.kstest(vector_M / 2**32, "uniform").pvalue > 1e-4
    assert release.metrics["tokens"] > 0
    left = [path for path in (home / "sums").rglob("*") if path.is_file()]
    assert {path.name for path in left} == {"state.json"} and all('"seed": ""' in path.read_text() for path in left)


def _blob(message: bytes) -> bytes:
    return message[36 + int.from_bytes(message[32:36], "little") :]


def test_a_node_of_a_secure_run_lets_no_clear_update_out(world: str, start: State, tmp_path: Path) -> None:
    overrides = f"{world} {SECURE}"
    runtime = GridRuntime(LocalGrid(overrides), "x")
    assert list(runtime.train(Task(1, start), runtime.users())) == []
    assert len(runtime.failed) == 1 and "under masks only" in next(iter(runtime.failed))
    with pytest.raises(InputError, match=r"privacy\.secure needs four"):
        HomingStrategy(scenario_of(overrides))
    with pytest.raises(InputError, match="weights must be 'uniform'"):
        server_app.run(scenario_of(f"{overrides} weights=examples"), LocalGrid(overrides), tmp_path / "run")


def test_under_guarantee_u_the_nodes_add_the_noise_and_no_two_runs_have_the_same(world: str, start: State) -> None:
    overrides = f"{world} {SECURE} privacy=user privacy.user.clip=1e-3"
    scenario, plan = scenario_of(overrides), Plan(scenario_of(overrides), Cohorts(USERS, 3, USERS, 3, 1), 2.0)
    (found,), (again,) = (one(LocalGrid(overrides), overrides, start, plan) for _ in range(2))
    assert (found.weight, found.users, found.metrics) == (USERS, USERS, {}) and distance(found.update, again.update) > 0
    task = Task(1, start, ("shared",))
    how = secure.form(scenario, aggregators.build(scenario.aggregator, {}), task, Call("s", USERS, NODES, 2.0))
    values = np.concatenate([v.flatten().numpy() for v in found.update.values()])
    want = how.grid.noise * how.grid.step * NODES**0.5
    assert stats.kstest(values, stats.norm(scale=want).cdf).pvalue > 1e-4
    assert how.grid.honest == 2 and want > 2.0 * 1e-3


def test_a_node_gives_no_part_where_the_server_names_no_noise(world: str, start: State) -> None:
    overrides = f"{world} {SECURE}"
    runtime = SecureGridRuntime(GridRuntime(LocalGrid(f"{overrides} privacy=user"), "x"), scenario_of(overrides))
    assert list(runtime.train(Task(1, start, ("shared",)), runtime.users())) == []
    assert [count for said, count in runtime.inner.failed.items() if "could not answer (InputError)" in said] == [NODES]


def test_under_guarantee_e_a_nodes_counts_stay_home_and_its_noised_updates_are_in_the_sum(world: str, home: Path, start: State) -> None:
    overrides = f"{world} {SECURE} privacy=example shared_training.batch=99 private_training.batch=99"
    (found,) = one(LocalGrid(overrides), overrides, start)
    assert (found.weight, found.users) == (USERS, USERS) and not any(found.metrics.values())
    assert shift(found.update, {n: torch.zeros_like(v) for n, v in found.update.items()}) > 1e-3
    with Ledger(home / LEDGER) as ledger:
        assert len(ledger.histories()) == USERS


# ---------------------------------------------------------------------- the wire
def test_what_travels_comes_back_as_it_was() -> None:
    task, call = Task(3, {"w": torch.ones(2)}, ("shared",), None, 4), Call("ab", 7, 3, 0.5)
    order = Order(task, "run", ("u", "v"))
    found, same, me = secure_wire.decode_begin(through(secure_wire.encode_begin(order, wire.encode_shared(task.shared), call, "12")))
    assert (found.users, found.run, found.task.round, same, me) == (("u", "v"), "run", 3, call, "12")
    assert torch.equal(found.task.shared["w"], task.shared["w"])
    step = Step("mask", "run", "12", bytes(range(256)))
    assert secure_wire.decode_step(through(secure_wire.encode_step(step))) == step
    assert secure_wire.decode_answer(through(secure_wire.encode_answer(b"xyz"))) == b"xyz"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"masking": ArrayRecord({"message": Array(np.zeros(3, np.float32))})},
        {"masking": ArrayRecord({"message": Array(np.zeros((1, 3), np.uint8))})},
        {"masking": ArrayRecord({"message": Array("uint8", (3,), "numpy.ndarray", b"nonsense")})},
        {"masking": ArrayRecord({"other": Array(np.zeros(3, np.uint8))})},
        {"masking": ConfigRecord({"message": b"abc"})},
        {"masking": ArrayRecord({"message": Array(np.zeros(3, np.uint8))}), "diary": ConfigRecord({"text": "dear"})},
    ],
)
def test_an_answer_that_is_none_is_not_read(content: Any) -> None:
    with pytest.raises(WireError):
        secure_wire.decode_answer(RecordDict(content))


def test_folders_of_sums_are_apart_by_run_and_node() -> None:
    assert len({client_app._sums(run, me) for run in ("a", "b") for me in ("1", "2")}) == 4

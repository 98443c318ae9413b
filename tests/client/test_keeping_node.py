"""On a node: what is kept changes training as it says and in no other way, is in the store, and begins a period once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client.base import Base
from client.data.types import Dataset, Splits
from client.keeping import importance
from client.node import Node
from client.private import PrivateStore
from configs.life import Life
from configs.scenario import Adapter, Local
from strategies.base import Task
from strategies.keeping import KEEPING
from strategies.keeping.contract import MEMORY, PERIOD, SEEN, B
from strategies.tree import State
from tests.client.federation import LORA, SCENARIO, SGD, Free, Texts, begun, same

OPTIONS = {"ewc": {"strength": 0.0}, "olora": {"strength": 0.0}}
CORE = Adapter(kind="core", rank=3, layers=1, targets=("down_proj",))


@pytest.fixture
def lives(base: Base, texts: Texts, tmp_path: Path) -> Any:
    """A maker of nodes with one user at a period of a life, over one store for each name."""

    @contextmanager
    def make(keep: str, period: int, store: str = "", split: Splits | None = None, purse: Any = None, **changes: Any) -> Iterator[Node]:
        every = [tuple(texts(10 * t, 4, length=8)) for t in range(3)]
        numbered = [tuple(replace(e, unit=4 * t + i) for i, e in enumerate(part)) for t, part in enumerate(every)]
        users = {"ann": split or Splits(numbered[period - 1], (), tuple(texts(7, 3)))}
        earlier = {"ann": tuple(e for part in numbered[: period - 1] for e in part)}
        options = changes.pop("options", OPTIONS.get(keep, {}))
        life = Life(periods=3, period=period, keep=keep, keep_options=options)
        changes = {"private_training": replace(SGD, lr=0.05, batch=2), **changes}
        scenario = replace(SCENARIO, scheme="dual", life=life, **changes)
        data = Dataset(users, {}, "answer", (), (), "text", earlier=earlier)
        node = Node(scenario, base, data, PrivateStore(tmp_path / (store or keep)), purse)
        try:
            yield node
        finally:
            node.close()

    return make


def trained(node: Node, shared: State, number: int) -> State:
    """What the user has after a round in which only what is private trains."""
    list(node.train(Task(number, shared, ("private",), participations=3, cohort=1, everyone=1), ["ann"]))
    return node.store.load("ann", number + 1) or {}


def lived(lives: Any, keep: str, periods: int = 2, store: str = "", **changes: Any) -> State:
    found: State = {}
    for period in range(1, periods + 1):
        with lives(keep, period, store, **changes) as node:
            found = trained(node, begun(node), period)
    return found


@pytest.mark.parametrize("kind", [LORA, CORE])
@pytest.mark.parametrize("purse", [None, Free(0.3, 1.0)])
def test_ewc_of_no_strength_is_sequential_bit_by_bit(lives: Any, kind: Adapter, purse: Any) -> None:
    privacy: dict[str, Any] = {"privacy": replace(SCENARIO.privacy, guarantee="unclaimed")} if purse else {}
    plain, held = (lived(lives, k, 3, purse=purse, private=kind, **privacy) for k in ("sequential", "ewc"))
    assert plain.keys() == held.keys() and all(torch.equal(plain[n], held[n]) for n in plain)
    strong = lived(lives, "ewc", 3, "strong", purse=purse, private=kind, options={"strength": 0.5}, **privacy)
    assert any(not torch.equal(plain[n], strong[n]) for n in plain)


def test_the_first_period_is_the_same_whatever_is_kept(lives: Any) -> None:
    plain = lived(lives, "sequential", 1)
    for keep in KEEPING:
        same(lived(lives, keep, 1, f"first-{keep}"), plain)


def test_replay_of_everything_is_joint_training(lives: Any) -> None:
    whole = lived(lives, "replay", 2, options={"buffer": 0.0})
    with lives("sequential", 1, "joint") as node:
        trained(node, begun(node), 1)
        first = node.dataset.users["ann"]
    with lives("sequential", 2, "joint") as node:
        now = node.dataset.users["ann"]
        node.dataset = replace(node.dataset, users={"ann": replace(now, train=(*first.train, *now.train))})
        joint = trained(node, begun(node), 2)
    assert all(torch.equal(whole[n], joint[n]) for n in joint)
    few = lived(lives, "replay", 2, "few", options={"buffer": 2.0})
    assert any(not torch.equal(whole[n], few[n]) for n in joint)


def test_retraining_forgets_the_adapter_and_sees_everything(lives: Any) -> None:
    again = lived(lives, "retrain", 2)
    with lives("sequential", 2, "fresh") as node:
        node.dataset = replace(
            node.dataset, users={"ann": Splits((*node.dataset.earlier["ann"], *node.dataset.users["ann"].train), (), ())}
        )
        same(trained(node, begun(node), 2), again)


def test_what_is_remembered_is_a_file_of_its_own_and_a_period_begins_once(lives: Any) -> None:
    lived(lives, "olora", 2)
    with lives("olora", 2) as node:
        before = node.store.parts("ann", 3)[MEMORY]
        trained(node, begun(node), 3)
        parts = node.store.parts("ann", 4)
        assert parts.keys() == {"private", MEMORY} and float(parts[MEMORY][PERIOD]) == 2 and float(parts[MEMORY][SEEN]) == 4
        assert all(torch.equal(value, before[name]) for name, value in parts[MEMORY].items())
        assert any(bool(v.any()) for n, v in before.items() if "/past/" in n and n.endswith(B))
    with lives("sequential", 2, "olora") as node, pytest.raises(Exception, match="made for adapter"):
        trained(node, begun(node), 4)


@pytest.mark.parametrize("keep", ["olora", "restart", "slow_fast"])
def test_what_was_put_by_is_applied_in_training_and_in_use(lives: Any, keep: str) -> None:
    with lives(keep, 1, private_training=replace(SGD, lr=5.0, batch=2)) as node:
        shared = begun(node)
        trained(node, shared, 1)
        was = node.evaluate(Task(2, shared), "test", ("shared_private", "shared"))[0]
    with lives(keep, 2, private_training=Local(lr=0.0)) as node:
        trained(node, shared, 2)
        now = node.evaluate(Task(3, shared), "test", ("shared_private", "shared"))[0]
    assert was["shared_private.nll"] != pytest.approx(was["shared.nll"], abs=1e-3)
    assert now["shared_private.nll"] == pytest.approx(was["shared_private.nll"], abs=1e-4)


@pytest.mark.parametrize("kind", [LORA, CORE])
def test_importances_are_mean_squared_slopes_of_single_examples(lives: Any, kind: Adapter) -> None:
    with lives("ewc", 2, private=kind, options={"fisher": 1.0}) as node:
        state = {**node.start, **{n: v + 0.1 for n, v in node.start.items() if n.startswith("private/")}}
        examples = node.dataset.earlier["ann"]
        found, alone = importance(node, state, examples), [importance(node, state, [e]) for e in examples]
        for name, value in found.items():
            torch.testing.assert_close(value, torch.stack([x[name] for x in alone]).mean(0))
            assert float(value.max()) > 0 and float(value.min()) >= 0
        sums = [float(v.sum()) for n, v in found.items()]
        if kind is LORA:
            assert sums[0] == pytest.approx(sums[1], rel=1e-4)

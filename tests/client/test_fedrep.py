"""Heads of one's own on a representation that all learn: what the earlier and the later examples may touch, and what leaves a node."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client.base import Base
from client.data.types import Dataset, Encoded, Splits
from client.node import Node
from client.private import PrivateStore
from client.store.manifest import Made
from client.train import Learner, Trainer, Work
from configs.scenario import Adapter, Local, Scenario
from strategies.base import Release, Task
from strategies.tree import State

Texts = Callable[..., list[Encoded]]
PRIVATE = {"mixed": Adapter(kind="mixed", rank=3, layers=1, targets=("down_proj",)), "lora": Adapter(rank=2, layers=1)}
LEARNED = {"mixed": ".mix.", "lora": ".lora_A."}
SGD = Local(optimizer="sgd", lr=0.2, batch=2)
SCENARIO = Scenario(scheme="fedrep", shared=Adapter(rank=2, layers=1), shared_training=SGD, private_training=replace(SGD, epochs=2))


@pytest.fixture(params=PRIVATE)
def kind(request: pytest.FixtureRequest) -> str:
    """A private kind with a representation."""
    return request.param


@pytest.fixture
def node(base: Base, texts: Texts, tmp_path: Path, kind: str) -> Iterator[Node]:
    """Two users, of five examples and of four."""
    splits = {u: Splits(tuple(texts(i, 5 - i)), (), tuple(texts(i + 7, 2))) for i, u in enumerate(("ann", "bob"))}
    scenario = replace(SCENARIO, private=PRIVATE[kind])
    found = Node(scenario, base, Dataset(splits, {}, "answer", (), (), "text"), PrivateStore(tmp_path / "private"))
    yield found
    found.close()


def watched(node: Node, task: Task) -> tuple[list[tuple[str, list[Sequence[Encoded]], list[State]]], list[Release]]:
    """Each phase of a round with its users' examples and states before it, and the releases."""
    seen: list[tuple[str, list[Sequence[Encoded]], list[State]]] = []
    real = node.trainer.train

    def train(learners: Sequence[Learner], moves: Any, local: Local, guard: Any, phase: Any) -> tuple[list[State], Work]:
        seen.append((str(learners[0].key[-1]), [x.train for x in learners], [x.state for x in learners]))
        return real(learners, moves, local, guard, phase)

    object.__setattr__(node, "trainer", type("Watched", (), {"train": staticmethod(train), "blocks": node.trainer.blocks}))
    try:
        return seen, list(node.train(task, node.users()))
    finally:
        object.__setattr__(node, "trainer", Trainer(node.tower, node.split.layouts, node.scenario.engine))


def start(node: Node) -> State:
    return node.split.shared_start()


def test_heads_see_the_earlier_examples_the_representation_the_later_ones_and_nothing_is_missed(node: Node) -> None:
    (first, support, _), (second, query, _) = watched(node, Task(1, start(node)))[0]
    assert (first, second) == ("private", "shared")
    for user, mine, held in zip(node.users(), support, query, strict=True):
        assert [id(e) for e in (*mine, *held)] == [id(e) for e in node.dataset.users[user].train]
        assert mine and held


def test_examples_are_parted_anew_each_round_and_equally_for_an_equal_seed(node: Node) -> None:
    def sizes(round_: int) -> list[int]:
        return [len(mine) for mine in watched(node, Task(round_, start(node)))[0][0][1]]

    found = [sizes(n) for n in range(1, 9)]
    assert len(set(map(str, found))) > 1
    assert sizes(8) == found[-1]


def test_a_head_begins_anew_each_round_whatever_the_user_has_stored(node: Node) -> None:
    first = [r.update for r in watched(node, Task(1, start(node)))[1]]
    for user in node.users():
        stored = node.store.load(user, 2)
        assert stored
        node.store.save(user, 1, {n: v + 1.0 for n, v in stored.items()}, Made(node.origin))
    states = watched(node, Task(2, start(node)))[0][0][2]
    assert all(torch.equal(s[k], node.start[k]) for s in states for k in s if node.split.owner(k) == "private")
    again = [r.update for r in watched(node, Task(1, start(node)))[1]]
    assert all(torch.equal(a[n], b[n]) for a, b in zip(first, again, strict=True) for n in a)


def test_the_representation_travels_and_the_head_does_not(node: Node, kind: str) -> None:
    releases = watched(node, Task(1, start(node)))[1]
    for release in releases:
        assert release.update.keys() == start(node).keys()
        learned = [n for n in release.update if n.startswith("private/")]
        assert learned
        assert all(LEARNED[kind] in n for n in learned)
        assert all(bool(release.update[n].any()) for n in learned)
    stored = node.store.load("ann", 2)
    assert stored and not set(stored) & set(map(node.split.key, start(node)))
    assert any(bool(v.any()) for v in stored.values())


def test_names_that_travel_are_undone(node: Node) -> None:
    for key in node.start:
        assert node.split.key(node.split.name(key)) == key
    assert set(map(node.split.key, start(node))) == {k for k in node.start if node.split.owner(k) == "shared"}


def test_a_head_is_fitted_on_the_representation_that_was_sent(node: Node) -> None:
    sent = {n: v + 0.1 if n.startswith("private/") else v for n, v in start(node).items()}
    states = watched(node, Task(1, sent))[0][0][2]
    assert all(torch.equal(s[n], sent[n]) for s in states for n in sent if n.startswith("private/"))


def test_the_last_phase_fits_heads_on_all_examples_and_releases_nothing(node: Node) -> None:
    seen, releases = watched(node, Task(5, start(node), ("final",), 3))
    assert [name for name, _, _ in seen] == ["private"]
    assert [len(x) for x in seen[0][1]] == [5, 4]
    assert all(not r.update and r.weight == 0 for r in releases)
    assert node.store.load("bob", 6)


def test_before_the_private_adapter_joins_in_the_shared_one_sees_all_examples(node: Node) -> None:
    seen, _ = watched(node, Task(1, start(node), ("shared",)))
    assert [(name, [len(x) for x in train]) for name, train, _ in seen] == [("shared", [5, 4])]


def test_no_privacy_unit_is_seen_by_both_phases_of_a_round(node: Node) -> None:
    """Guarantee E charges a unit for one of the two only."""
    one, three = node.dataset.users["bob"].train[:2], node.dataset.users["ann"].train
    node.dataset.users["ann"] = Splits(tuple(replace(e, unit=k // 2) for k, e in enumerate(three)), (), ())
    node.dataset.users["bob"] = Splits(tuple(replace(e, unit=0) for e in one), (), ())
    for number in range(1, 9):
        (_, support, _), (_, query, _) = watched(node, Task(number, start(node)))[0]
        seen = [({e.unit for e in mine}, {e.unit for e in held}) for mine, held in zip(support, query, strict=True)]
        assert all(not mine & held for mine, held in seen)
        assert {unit for mine, held in seen[:1] for unit in (*mine, *held)} == {0, 1, 2}

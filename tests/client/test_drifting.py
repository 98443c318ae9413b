"""On a node: who sits a period out keeps what is private bit by bit and pays for the look alone; what is released does not change."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from client.base import Base
from client.data.types import Dataset, Splits
from client.drifting import gains, sat_out
from client.node import Node
from client.private import PrivateStore
from client.purse import Purse
from configs.life import Life
from strategies.base import Release, Task
from strategies.drift import DETECTORS, Detector
from strategies.keeping.contract import MEMORY, PERIOD, SAT_OUT
from strategies.privacy.ledger import Ledger
from tests.client.federation import SCENARIO, SGD, Texts, begun, same

CALM, ALARMED = "calm", "alarmed"


@pytest.fixture(autouse=True)
def detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never raises an alarm, and one that always does."""

    def calm(noise: float = 0.0) -> Detector:
        return Detector("", lambda memory_M, _x, _n: (memory_M + 1, False), 2, noise)

    def alarmed() -> Detector:
        return Detector("", lambda memory_M, _x, _n: (memory_M, True))

    monkeypatch.setitem(DETECTORS, CALM, calm)
    monkeypatch.setitem(DETECTORS, ALARMED, alarmed)


@pytest.fixture
def lives(base: Base, texts: Texts, tmp_path: Path) -> Any:
    """A maker of nodes with one user at a period of a life, over one store and one ledger for each name."""

    @contextmanager
    def make(
        store: str, period: int, train: Literal["always", "drift"] = "drift", detector: str = "paired", **changes: Any
    ) -> Iterator[Node]:
        every = [tuple(replace(e, unit=4 * t + i) for i, e in enumerate(texts(10 * t, 4, length=8))) for t in range(3)]
        users = {"ann": Splits(every[period - 1], (), tuple(texts(7, 3)))}
        earlier = {"ann": tuple(e for part in every[: period - 1] for e in part)}
        life = Life(periods=3, period=period, train=train, detector=detector, keep=changes.pop("keep", "sequential"),
                    detector_options=changes.pop("options", {}))  # fmt: skip
        scenario = replace(SCENARIO, scheme="dual", rounds=2, life=life, private_training=replace(SGD, lr=0.05), **changes)
        data = Dataset(users, {}, "answer", (), (), "text", earlier=earlier)
        node = Node(scenario, base, data, PrivateStore(tmp_path / store))
        with Ledger(tmp_path / f"{store}.sqlite") as ledger:
            if scenario.privacy.of_examples:
                node.purse = Purse(scenario, ledger, f"run-{period}")
            try:
                yield node
            finally:
                node.close()

    return make


def turn(node: Node, number: int) -> Release:
    """A round of both phases."""
    return next(iter(node.train(Task(number, begun(node), participations=2, cohort=1, everyone=1), ["ann"])))


def stored(node: Node, number: int) -> dict[str, Any]:
    return node.store.parts("ann", number + 1)


@pytest.mark.parametrize("keep", ["sequential", "replay", "olora", "slow_fast"])
def test_without_a_change_what_is_private_stays_bit_by_bit_and_the_release_is_the_same(lives: Any, keep: str) -> None:
    found = {}
    for store, train, detector in (("still", "drift", CALM), ("always", "always", "paired"), ("changed", "drift", ALARMED)):
        with lives(store, 1, train, detector, keep=keep) as node:
            turn(node, 1)
            first = stored(node, 1)
        with lives(store, 2, train, detector, keep=keep) as node:
            sent = turn(node, 2), turn(node, 3)
            found[store] = first, sent, stored(node, 3)
            assert sat_out(node, 4) == (store == "still")
    first, sent, last = found["still"]
    assert all(torch.equal(value, first["private"][name]) for name, value in last["private"].items())
    assert int(last[MEMORY][SAT_OUT]) == 2 and int(last[MEMORY][PERIOD]) == 1
    same(found["always"][1][0].update, sent[0].update, 0.0)
    assert any(not torch.equal(value, first["private"][name]) for name, value in found["always"][2]["private"].items())
    same(found["always"][2]["private"], found["changed"][2]["private"], 0.0)
    same(found["always"][1][1].update, found["changed"][1][1].update, 0.0)


def test_a_period_is_judged_once_and_the_next_one_anew(lives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for period in (1, 2, 3):
        with lives("calm", period, detector=CALM) as node:
            turn(node, 2 * period - 1)
            turn(node, 2 * period)
            memory = stored(node, 2 * period)[MEMORY]
            looks = max(0, period - 1)  # the first period trains unasked
            assert memory["memory/drift"].tolist() == [looks, looks] and int(memory[SAT_OUT]) == (period if looks else 0)
    monkeypatch.setitem(DETECTORS, CALM, lambda: Detector("", lambda memory_M, _x, _n: (memory_M, True), 2))
    with lives("calm", 3, detector=CALM) as node:
        turn(node, 7)
        assert sat_out(node, 8) == 1, "the decision of a period stands"


def test_gains_are_losses_of_whole_units_against_the_shared_adapter(lives: Any) -> None:
    with lives("gains", 2) as node:
        state = {**node.start, **node._received(Task(1, begun(node)))}
        assert float(gains(node, "ann", state).abs().max()) == 0, "what is private changes nothing yet"
        moved = state | {n: v + 0.2 for n, v in state.items() if n.startswith("private/")}
        x_n, own = gains(node, "ann", moved), node.dataset.users["ann"]
        assert x_n.shape == (4,) and float(x_n.abs().min()) > 0
        two = tuple(replace(e, unit=e.unit // 2) for e in own.train)
        node.dataset = replace(node.dataset, users={"ann": replace(own, train=two)})
        torch.testing.assert_close(gains(node, "ann", moved), x_n.reshape(2, 2).mean(1))
        worse = mean_of(node, moved) - mean_of(node, state)
        assert float(x_n.mean()) == pytest.approx(worse, abs=1e-4)


def mean_of(node: Node, state: Any) -> float:
    """The loss of what a user has on the period's own examples, by the node's evaluation: four texts of equal length."""
    own = node.dataset.users["ann"].train
    (score,) = node._score(node.trainer.blocks({n: v.unsqueeze(0) for n, v in state.items()}, node.split.scheme.final), [own])
    return float(score[:, 0].sum() / score[:, 1].sum())


def test_under_guarantee_e_a_look_is_booked_and_who_sits_out_pays_for_no_private_step(lives: Any) -> None:
    privacy = replace(SCENARIO.privacy, guarantee="example", example=replace(SCENARIO.privacy.example, epsilon=8.0))
    booked = {}
    for store, detector, options in (("calm", CALM, {"noise": 5.0}), ("alarmed", "paired", {"noise": 5.0, "alarm": 0.5, "clip": 1e-3})):
        for period in (1, 2):
            with lives(store, period, detector=detector, options=options, privacy=privacy) as node:
                assert node.purse
                if store == "alarmed":
                    node.purse.draw = lambda *_: lambda shape: torch.full(shape, 1e3).double()  # type: ignore[method-assign]
                turn(node, 2 * period - 1)
                turn(node, 2 * period)
                booked[store, period] = [(row[2], row[3]) for row in node.purse.ledger._rows() if row[1] == f"run-{period}"]
    both = [(number, what) for number in (1, 2) for what in ("private", "shared")]
    assert sorted(booked["calm", 1]) == sorted(booked["alarmed", 1]) == both
    assert sorted(booked["calm", 2]) == [(3, "drift"), (3, "shared"), (4, "shared")]
    assert sorted(booked["alarmed", 2]) == [(3, "drift"), (3, "private"), (3, "shared"), (4, "private"), (4, "shared")]


def test_who_cannot_pay_for_the_look_is_not_looked_at(lives: Any) -> None:
    privacy = replace(SCENARIO.privacy, guarantee="example")
    with lives("poor", 1, detector=CALM, options={"noise": 5.0}, privacy=privacy) as node:
        turn(node, 1)
    with lives("poor", 2, detector=CALM, options={"noise": 1e-3}, privacy=privacy) as node:
        assert list(node.train(Task(2, begun(node), participations=2, cohort=1, everyone=1), ["ann"])) == []
        assert not [row for row in node.purse.ledger._rows() if row[3] == "drift"]

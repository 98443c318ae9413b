"""On a node: candidates are judged by a newcomer's examples, and under guarantee E with noise that is booked before."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client import newcomers
from client.base import Base
from client.node import Node
from client.purse import Purse
from client.store.manifest import Made
from configs.scenario import ExampleLevel, Privacy
from strategies.base import Task
from strategies.newcomers.nearest import nearest
from strategies.privacy.accounting import epsilon
from strategies.privacy.gaussian import mu_for
from strategies.privacy.ledger import Ledger
from strategies.tree import State, generator, take
from tests.client.federation import LORA, Free, Nodes, Texts, begun, kept

CORE = replace(LORA, kind="core", rank=3)
EPSILON = 4.0
GUARDED = Privacy("example", example=ExampleLevel(EPSILON, 1e-5))
WAY = nearest(candidates=0, share=0.2, bound=0.5)


def candidates(node: Node, count: int = 4) -> State:
    draw = generator("candidates")
    own = {n: v for n, v in node.start.items() if node.split.kept(n)}
    return {n: 2 * torch.randn(count, *v.shape, generator=draw) for n, v in own.items()}


def task(node: Node, round_: int = 3) -> Task:
    return Task(round_, begun(node), ("final",), 2, cohort=2, everyone=2)


@pytest.fixture
def guarded(nodes: Nodes, tmp_path: Path) -> Any:
    @contextmanager
    def make(**changes: Any) -> Iterator[Node]:
        with nodes("dual", private=CORE, privacy=GUARDED, personalize=2, **changes) as node, Ledger(tmp_path / "ledger") as ledger:
            node.purse = Purse(node.scenario, ledger, "run", keyed=True)
            yield node

    return make


def test_a_candidates_loss_is_that_of_the_users_own_model(nodes: Nodes) -> None:
    with nodes("dual", private=CORE) as node:
        asked, some = task(node), candidates(node)
        test = node.dataset.users["ann"].test
        found_UJ = newcomers.losses(node, asked, some, test)
        for j in range(4):
            node.store.save("ann", j + 1, take(some, j), Made(node.origin))
            scores = node.control("shared_private", replace(asked, round=j + 2), "test", ["ann"])
            assert scores is not None
            torch.testing.assert_close(found_UJ[:, j], scores[0][:, 0], atol=1e-4, rtol=1e-5)
        joined = newcomers.losses(node, asked, some, [replace(e, unit=0) for e in test])
        torch.testing.assert_close(joined, found_UJ.sum(0, keepdim=True), atol=1e-4, rtol=1e-5)


def test_one_unit_moves_the_sum_by_the_bound_at_most() -> None:
    losses_UJ = torch.randn(6, 5, generator=generator("units")) * torch.tensor([0.01, 1, 1, 5, 50, 1]).unsqueeze(1)
    whole_J = newcomers.summed(losses_UJ, 0.5)
    moved = [float((whole_J - newcomers.summed(losses_UJ[[i for i in range(6) if i != k]], 0.5)).norm()) for k in range(6)]
    assert max(moved) == pytest.approx(0.5) and moved[0] < 0.1
    torch.testing.assert_close(newcomers.summed(losses_UJ + torch.arange(6.0).unsqueeze(1), 0.5), whole_J, atol=1e-5, rtol=1e-5)


def test_a_look_is_noised_and_booked_and_training_has_what_is_left(guarded: Any) -> None:
    with guarded() as node:
        asked, some = task(node), candidates(node)
        said = newcomers.verdict(node, WAY, "ann", asked, some)
        z = (0.2 * mu_for(EPSILON, 1e-5) ** 2) ** -0.5
        (event,) = node.purse.ledger.history("ann")
        assert event.noise == pytest.approx(z) and event.steps == 1 and said.noise == pytest.approx(0.5 * z)
        clean_J = newcomers.summed(newcomers.losses(node, asked, some, node.dataset.users["ann"].train), 0.5)
        drawn_J = (said.losses_J - clean_J) / said.noise
        assert torch.equal(said.losses_J, newcomers.verdict(node, WAY, "ann", asked, some).losses_J)  # a simulation repeats itself
        other_J = newcomers.verdict(node, WAY, "bob", asked, some).losses_J
        assert 0.1 < float(drawn_J.norm()) < 5 and not torch.equal(other_J, said.losses_J)
        list(node.train(asked, ["ann"]))
        history = node.purse.ledger.history("ann")
        assert len(history) == 2 and 0.98 * EPSILON < epsilon(history, 1e-5) <= EPSILON
        assert kept(node)  # and it did train


def test_who_has_nothing_to_spend_or_to_show_begins_as_everyone_does(guarded: Any) -> None:
    with guarded() as node:
        asked, some = task(node), candidates(node)
        node.dataset.users["bob"] = replace(node.dataset.users["bob"], train=())
        assert newcomers.verdict(node, WAY, "bob", asked, some) == (pytest.approx(torch.zeros(4)), 0.0)
        assert not node.purse.ledger.history("bob")
        for run in ("earlier", "run"):
            node.purse = Purse(node.scenario, node.purse.ledger, run, keyed=True)
            list(node.train(asked, ["ann"]))  # the earlier one takes all
        spent = node.purse.ledger.history("ann")
        said = newcomers.verdict(node, WAY, "ann", asked, some)
        assert not said.losses_J.any() and said.noise == 0 and node.purse.ledger.history("ann") == spent
        node.purse = None
        with pytest.raises(RuntimeError, match="needs a purse"):
            newcomers.verdict(node, WAY, "ann", asked, some)


def test_without_a_guarantee_there_is_no_noise(nodes: Nodes) -> None:
    with nodes("dual", private=CORE) as node:
        asked, some = task(node), candidates(node)
        said = newcomers.verdict(node, WAY, "ann", asked, some)
        plain_J = newcomers.losses(node, asked, some, node.dataset.users["ann"].train).double().sum(0)
        torch.testing.assert_close(said.losses_J, plain_J - plain_J.mean(), atol=1e-4, rtol=1e-5)
        assert said.noise == 0


def test_released_adapters_are_those_that_are_there(nodes: Nodes) -> None:
    with nodes("dual", private=CORE, purse=Free(0.0, math.inf)) as node:
        assert newcomers.released(node, 9) == ([], {})
        node.store.save("bob", 2, take(candidates(node), 0), Made(node.origin))
        users, found = newcomers.released(node, 9)
        assert users == ["bob"] and all(torch.equal(v[0], candidates(node)[n][0]) for n, v in found.items())


def test_the_first_units_are_whole(texts: Texts) -> None:
    examples = [replace(e, unit=u) for e, u in zip(texts(1, 6), (2, 2, 4, 4, 4, 7), strict=True)]
    assert [len(newcomers.first(examples, n)) for n in (0, 1, 2, 3, 9)] == [0, 2, 5, 6, 6]


def test_a_profile_is_read_as_if_it_were_alone(base: Base, tokenizer: Any) -> None:
    base = replace(base, tokenizer=tokenizer)
    said = {"ann": "w1 w2 w3 w4 w5", "bob": "w7 w8", "cat": "w1 w2 w3 w4 w5"}
    found = newcomers.profiles(base, said)
    for user, text in said.items():
        with torch.no_grad():
            hidden = base.model.base_model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        torch.testing.assert_close(found[user], hidden.mean(0), atol=1e-5, rtol=1e-5)
    assert torch.equal(found["ann"], found["cat"]) and not torch.allclose(found["ann"], found["bob"])

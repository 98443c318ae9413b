"""Two users on a node, rounds of plain averaging, and what is left of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from client.data.types import Encoded
from client.dpsgd import Guard
from client.node import Node
from configs.scenario import Adapter, Local, Scenario
from strategies import schemes
from strategies.base import Release, Task, personal
from strategies.privacy.noise import keyed
from strategies.schemes import SCHEMES
from strategies.tree import State, add

Texts = Callable[..., list[Encoded]]
Nodes = Callable[..., Any]
SGD = Local(optimizer="sgd", lr=0.2, batch=1 << 20, max_norm=0.0)  # one step over all that a user has
LORA = Adapter(rank=2, layers=1, targets=("down_proj",))
SCENARIO = Scenario(
    weights="uniform", shared=LORA, private=replace(LORA, rank=3), shared_training=SGD, private_training=SGD, evaluate_every=0
)
SENDING = [name for name in SCHEMES if "shared" in schemes.build(name, {}).blocks]
PERSONAL = [name for name in SCHEMES if personal(schemes.build(name, {}))]
TUNED = [name for name in PERSONAL if ("personalize", 0) not in schemes.build(name, {}).needs]  # who have a last round
PERSONAL_MODEL = [name for name in PERSONAL if not schemes.build(name, {}).references]


def begun(node: Node) -> State:
    """A shared adapter as after some rounds: both factors away from zero."""
    draw = torch.Generator().manual_seed(5)
    return {n: v + 0.3 * torch.randn(v.shape, generator=draw) for n, v in node.split.shared_start().items()}


def rounds(node: Node, shared: State, count: int = 1, users: Sequence[str] = ("ann", "bob")) -> tuple[list[Release], State]:
    """So many rounds of plain averaging: the last releases, and the adapter after them."""
    found: list[Release] = []
    for number in range(1, count + 1):
        found = list(node.train(Task(number, shared, cohort=len(users), participations=count), list(users)))
        if found[0].update:
            shared = add(shared, {n: sum(r.update[n] for r in found) / len(found) for n in found[0].update})  # type: ignore[misc]
    return found, shared


def kept(node: Node, user: str = "ann", at: int = 9) -> State:
    return node.store.load(user, at) or {}


def personalized(node: Node, shared: State, epochs: int, number: int = 2) -> State:
    """What the first user has after the last round."""
    list(node.train(Task(number, shared, ("final",), epochs, cohort=2), ["ann"]))
    return kept(node)


def rows(node: Node, shared: State, number: int = 9) -> list[dict[str, Any]]:
    return node.evaluate(Task(number, shared), "test", ("shared", "shared_private", "local_only"))


def same(one: State, other: State, tolerance: float = 1e-6) -> None:
    assert one.keys() == other.keys() and one
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=tolerance, rtol=tolerance)


def moved(one: State, other: State) -> float:
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def trained_alone(nodes: Nodes, shared: State, **changes: Any) -> State:
    """Where the first user's copy of the adapter ends when it is all there is: shared_only's local training."""
    with nodes("shared_only", **changes) as node:
        return add(shared, rounds(node, shared, users=["ann"])[0][0].update)


class Free:
    """A purse that pays for everybody, with one noise for all parts and one bound."""

    ledger, run = SimpleNamespace(path=Path("none")), "x"  # what a manifest names

    def __init__(self, noise: float, clip: float) -> None:
        self.multiplier, self.clip = noise, clip

    def noise(self, *_: object) -> dict[str, float]:
        return dict.fromkeys(("shared", "private", "final"), self.multiplier)

    def book(self, _round: int, _scheme: object, costs: Any) -> frozenset[str]:
        return frozenset(costs)

    def guard(self, _phase: object) -> Guard:
        return Guard(self.clip, keyed)

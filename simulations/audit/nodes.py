"""The nodes of an audit: the real engine, purse and ledger over the users that it makes up, and what an attack reads from them."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from client.data.types import Splits
from client.node import Node
from client.private import UNKNOWN, PrivateStore
from client.purse import Purse
from client.store.manifest import Made, Origin
from configs.scenario import Scenario, label
from server import rounds
from simulations.training import World
from strategies.privacy.accounting import epsilons
from strategies.privacy.ledger import LEDGER, Ledger
from strategies.tree import State


class Kept(PrivateStore):
    """A store in memory, of newest states alone: audits train thousands of users whom nobody resumes."""

    def __init__(self) -> None:
        super().__init__(Path())
        self.newest: dict[str, dict[str, State]] = {}

    def parts(self, user: str, before: int, here: Origin | None = None) -> dict[str, State]:  # noqa: ARG002 - the interface
        """The user's newest states, by kind."""
        return self.newest.get(user, {})

    def save_parts(self, user: str, round_: int, parts: Mapping[str, State], made: Made = UNKNOWN) -> None:  # noqa: ARG002 - the interface
        """Keep the newest states alone."""
        self.newest[user] = {k: {name: value.detach().cpu().clone() for name, value in state.items()} for k, state in parts.items()}


@contextmanager
def opened(scenario: Scenario, world: World, users: dict[str, Splits], folder: Path) -> Iterator[Node]:
    """A node that keeps these users, with a ledger of its own under ``folder``.

    What is not noised draws its batches from the operating system: an attack does not know which examples were drawn.
    """
    folder.mkdir(parents=True)
    dataset = replace(world.dataset, users=users, unseen={})
    with Ledger(folder / LEDGER) as ledger:
        purse = Purse(scenario, ledger, label(scenario), keyed=scenario.privacy.guarantee != "unclaimed")
        with closing(Node(scenario, world.base, dataset, Kept(), purse)) as node:
            yield node


def guarded(scenario: Scenario) -> Scenario:
    """The scenario under guarantee E alone."""
    return replace(scenario, privacy=replace(scenario.privacy, guarantee="example"))


def unnoised(scenario: Scenario) -> Scenario:
    """The same training, clipped and without noise, which claims nothing."""
    level = replace(scenario.privacy.example, noised=())
    return replace(scenario, privacy=replace(scenario.privacy, guarantee="unclaimed", example=level))


def claimed(node: Node) -> float:
    """The largest epsilon that a user's ledger shows."""
    assert node.purse is not None
    return largest(node.purse.ledger, node.scenario.privacy.example.delta, node.scenario.privacy.accountant)


def largest(ledger: Ledger, delta: float, accountant: str) -> float:
    """The largest epsilon of anyone in a ledger."""
    return max(epsilons(list(ledger.histories().values()), delta, accountant), default=0.0)


def private(node: Node, user: str) -> Tensor:
    """All numbers of a user's private adapter after the last round, [P] float64."""
    start = {name: value.cpu() for name, value in node.start.items() if node.split.owner(name) == "private"}
    return flat(node.store.load(user, rounds.last_round(node.scenario) + 1) or start)


def flat(state: State) -> Tensor:
    """All numbers of a state, [P] float64, name by name in the alphabet's order; nothing of an empty one."""
    return torch.cat([torch.empty(0).double(), *(state[name].double().flatten() for name in sorted(state))])

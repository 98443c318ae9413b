"""What all attacks stand on: nodes as the program has them, with users that an attack makes up, and a budget that is nobody's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from client.data.types import Encoded, Splits
from client.node import Node
from client.purse import Purse
from configs.errors import InputError
from configs.scenario import Adapter, Local, Privacy, Scenario
from simulations.audit.nodes import Kept
from simulations.training import World
from strategies.base import Release, Task
from strategies.privacy.ledger import LEDGER, Ledger
from strategies.tree import State

LORA = Adapter(rank=16, alpha=32.0, layers=1, targets=("down_proj",))
ALL = 1 << 20  # a batch that holds all that a user has
STEP = Local(optimizer="sgd", epochs=1, batch=ALL, max_norm=0.0)  # one step over all that a user has


def one_round(scenario: Scenario, scheme: str, adapter: Adapter, training: Local) -> Scenario:
    """A run of one round, so that the whole budget is spent in it: the least noise that an epsilon can stand for."""
    return replace(
        scenario, scheme=scheme, scheme_options={},
        rounds=1, users_per_round=0, private_from=0, personalize=0, aggregator="fedit", aggregator_options={},
        weights="uniform", shared=adapter, private=adapter, shared_training=training, private_training=training,
    )  # fmt: skip


def guarded(scenario: Scenario, epsilon: float) -> Scenario:
    """The scenario under guarantee E at this epsilon; 0: without any noise or clip of examples."""
    level = replace(scenario.privacy.example, epsilon=epsilon or 1.0, noised=("shared", "private"))
    return replace(scenario, privacy=Privacy("example" if epsilon else "off", scenario.privacy.accountant, level))


def unclaimed(scenario: Scenario, noised: tuple[str, ...]) -> Scenario:
    """The scenario with examples clipped and only these blocks noised, by the whole budget: no guarantee is claimed."""
    level = replace(scenario.privacy.example, noised=noised)
    return replace(scenario, privacy=replace(scenario.privacy, guarantee="unclaimed", example=level))


@contextmanager
def opened(scenario: Scenario, world: World, users: Mapping[str, Sequence[Encoded]]) -> Iterator[Node]:
    """A node that keeps these users' training examples, with a ledger that is gone afterwards."""
    dataset = replace(world.dataset, users={user: Splits(tuple(x), (), ()) for user, x in users.items()}, unseen={})
    with (
        TemporaryDirectory(prefix="homing-attack-") as folder,
        Ledger(Path(folder) / LEDGER) as ledger,
        closing(Node(scenario, world.base, dataset, Kept(), Purse(scenario, ledger, "attack"))) as node,
    ):
        node.warm()
        yield node


def train(node: Node, shared: State | None = None, number: int = 1) -> dict[str, Release]:
    """One round of everyone: each user's release. Private adapters are in the node's store afterwards."""
    task = Task(number, node.split.shared_start() if shared is None else shared, participations=node.scenario.rounds)
    return dict(zip(node.users(), node.train(task, node.users()), strict=True))


def everyone(world: World) -> dict[str, tuple[Encoded, ...]]:
    """All examples of each user."""
    return {user: (*s.train, *s.validation, *s.test) for user, s in world.dataset.users.items()}


def prompt(example: Encoded) -> bytes:
    """What tells one prompt from another."""
    return example.ids.numpy().tobytes()


def catalogue(world: World) -> dict[bytes, Encoded]:
    """Each prompt that anyone may have, once, with the first of two answers. Raises `InputError` where there are not two."""
    if len(world.dataset.label_ids) != 2:
        raise InputError("data.task: attacks read choices between two answers; set data.task=choice and two data.labels")
    known = [*world.dataset.public, *(e for examples in everyone(world).values() for e in examples)]
    return {prompt(e): replace(e, label=0, unit=0) for e in known}

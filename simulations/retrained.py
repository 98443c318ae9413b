"""Controls that need a training of their own, each the strongest fair form of itself.

* local_only: every user alone, with as large an adapter and as many epochs as the shared one had, early stopping on
* shared: the shared adapter trained alone, by the same rounds (without a control above or below, and with a scheme whose private
  adapters do not begin anew each round, it is the main run's with the private one off)
* user_bias: one constant per user and label over that one
* shared_more_steps: that one, trained on for as many epochs as the private adapters had
* pooled: one adapter trained on everybody's data in one place, for as many epochs: what federation gives up

The two that train without a federation, local_only and pooled, train without privacy's noise too: they are bounds.

What trains in one place trains with AdamW and stops early, judged on validation examples: with the scenario's own rate and batch if it
uses AdamW, else with those below, for a federation's users may take one SGD step a round because its server has the optimizer.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from client.data.types import Splits
from client.node import Node
from client.private import PrivateStore
from configs.scenario import Local, Privacy, Scenario
from server import checkpoint, rounds
from server.checkpoint import Checkpoint
from simulations.training import World, train
from strategies import schemes
from strategies.base import Task

LONG = ("local_only", "shared_more_steps", "pooled")
LR = 1e-3  # of AdamW, in one place
LOCAL_BATCH, POOLED_BATCH = 32, 512  # examples
Rows = list[dict[str, Any]]


def rows(scenario: Scenario, world: World, folder: Path, observe: rounds.Observer) -> Iterator[tuple[str, Rows]]:
    """Train the controls that the scenario asks for and yield (name, a row per user)."""
    wanted = [c for c in LONG if c in scenario.controls]
    never_alone = schemes.of(scenario).final.fresh  # then the main run's shared adapter is no model by itself
    shared = never_alone and not {"shared", "user_bias"}.isdisjoint(scenario.controls)
    if not (wanted or shared) or scenario.scheme in ("local_only", "shared_only"):
        return
    home = folder / "controls"
    if "local_only" in wanted:
        yield "local_only", _table(local_only(scenario, len(world.dataset.users)), world, home / "local_only", observe, ("local_only",))
    alone = shared_only(scenario)
    if scenario.private_from == scenario.rounds:  # then those were the main run's rounds
        _from(checkpoint.latest(folder), alone, home / "shared")
    table = _table(alone, world, home / "shared", observe, ("shared", "user_bias"))
    yield "shared", table
    yield "user_bias", table
    if "shared_more_steps" in wanted:
        more = replace(alone, rounds=alone.rounds + extra_rounds(scenario, len(world.dataset.users)))
        _from(checkpoint.latest(home / "shared"), more, home / "shared_more_steps")
        yield _renamed("shared_more_steps", _table(more, world, home / "shared_more_steps", observe, ("shared",)))
    if "pooled" in wanted:
        yield _renamed("pooled", _pooled(scenario, world, home / "pooled", observe))


def shared_only(scenario: Scenario) -> Scenario:
    """The same federation without private adapters."""
    return replace(scenario, scheme="shared_only", scheme_options={}, personalize=0, private_from=0, evaluate_every=0)


def local_only(scenario: Scenario, users: int) -> Scenario:
    """Everyone alone, in one round of as many epochs as a user trained the shared adapter."""
    local = _in_one_place(scenario, users, LOCAL_BATCH)
    return replace(scenario, privacy=Privacy(), scheme="local_only", scheme_options={}, rounds=1,
                   users_per_round=0, personalize=0, private_from=0,
                   evaluate_every=0, private=scenario.shared, private_training=local)  # fmt: skip


def shared_epochs(scenario: Scenario, users: int) -> int:
    """How often a user's data passed the shared adapter on average, at least once."""
    share = scenario.users_per_round / users if scenario.users_per_round else 1.0
    return max(1, round(scenario.rounds * scenario.shared_training.epochs * min(share, 1.0)))


def extra_rounds(scenario: Scenario, users: int) -> int:
    """Rounds in which the shared adapter sees as many examples as the private adapters saw since they last began anew."""
    fresh = schemes.of(scenario).final.fresh
    share = min(scenario.users_per_round / users, 1.0) if scenario.users_per_round else 1.0
    kept = 0 if fresh else scenario.rounds - scenario.private_from
    private = kept * scenario.private_training.epochs * share + scenario.personalize
    return max(1, ceil(private / (scenario.shared_training.epochs * share)))


def _from(last: Checkpoint | None, scenario: Scenario, folder: Path) -> None:
    """Let a scenario's run begin where another has come to."""
    if last is not None and checkpoint.latest(folder) is None:
        reached = min(last.round, scenario.rounds)  # a last round that trains only private adapters has left the shared one as it was
        checkpoint.begin(folder, scenario)
        checkpoint.commit(folder, replace(last, round=reached, rows=last.rows[:reached]))


def _table(scenario: Scenario, world: World, folder: Path, observe: rounds.Observer,
           wanted: tuple[str, ...]) -> Rows:  # fmt: skip
    return train(scenario, world, folder, wanted, observe)[1]


def _in_one_place(scenario: Scenario, users: int, batch: int) -> Local:
    own = replace(scenario.shared_training, epochs=shared_epochs(scenario, users), early_stopping=True)
    return own if own.optimizer == "adamw" else replace(own, optimizer="adamw", lr=LR, momentum=0.0, max_norm=1.0, batch=batch)


def _pooled(scenario: Scenario, world: World, folder: Path, observe: rounds.Observer) -> Rows:
    users = world.dataset.users.values()
    everyone = Splits(*(tuple(e for s in users for e in getattr(s, part)) for part in ("train", "validation", "test")))
    one = replace(world.dataset, users={"everyone": everyone}, unseen={})
    alone = shared_only(scenario)
    local = _in_one_place(scenario, len(world.dataset.users), POOLED_BATCH)
    pooled = replace(
        alone,
        privacy=Privacy(),
        rounds=1,
        users_per_round=0,
        shared_training=local,
        aggregator="fedit",
        aggregator_options={},
        root_users=(),
    )
    state, _ = train(pooled, World(world.base, one), folder, (), observe)
    node = Node(alone, world.base, world.dataset, PrivateStore(folder / "none"))
    try:
        return node.evaluate(Task(1, state.shared), "test", ("shared",))
    finally:
        node.close()


def _renamed(name: str, rows: Rows) -> tuple[str, Rows]:
    return name, [{k.replace("shared.", f"{name}.", 1) if k.startswith("shared.") else k: v for k, v in r.items()} for r in rows]

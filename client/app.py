"""The Flower client: which users this node keeps, their training and their evaluation. The body is `client.node.Node`.

A process loads the base model, the data and the adapters' tower once and lends them to every node that it plays, one after
the other: Flower's simulation plays many nodes in one process and needs no second copy, a SuperNode plays one. What belongs to
a node alone is its users. Their private adapters lie in ``$HOMING_HOME/nodes/<run>``, a folder for each user and none for each
node: Flower gives a node another id when it comes back, and a run may be resumed with its users spread over other nodes.

A node keeps the users that ``users`` in its node config names (by commas), or its partition of the scenario's users
(``partition-id`` of ``num-partitions``: every so manieth one), or all that its data has. What differs from machine to machine
the node config may say instead of the scenario: ``data-path`` for ``data.path``, ``device`` for ``engine.device``.
"""

import copy
import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from client import wire
from client.data.types import Splits
from client.node import Node, open_node
from client.private import PrivateStore, folder_name
from configs.errors import InputError, nearest
from configs.scenario import Scenario
from strategies.admission import refusal
from strategies.base import Release
from strategies.files import home

app = ClientApp()

_LOADED: list[Node] = []  # at most one, which keeps everyone


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which users may be trained here, and of how many nodes this is one. No counts of examples."""
    node = open_kept(context, "")
    kept = wire.Kept(tuple(node.users()), int(context.node_config.get("num-partitions", 0)))
    return Message(wire.encode_kept(kept), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the users that the order names. Sends one sum where the aggregator needs no more, else a release per user."""
    order = wire.decode_order(message.content)
    node = open_kept(context, order.run)
    strangers = [user for user in order.users if user not in node.dataset.users]
    if strangers:
        raise InputError(f"this node keeps no user '{strangers[0]}'")
    releases: Iterable[Release] = node.train(order.task, order.users)
    if node.split.aggregator.linear:
        limit = node.scenario.max_release_norm
        releases = total(r for r in releases if refusal(r, order.task.shared, limit) is None)
    return Message(wire.encode_releases(releases, order.task.shared), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score a split of this node's users and send a row for each.

    That is what a researcher wants of a simulation, and no more private than the tables say. A deployment must send only what
    its scenario declares; until there is such a declaration, do not evaluate where rows must not leave.
    Two rows depend on who shares a node: ``shuffled`` takes another user of the same node, ``user_bias`` chooses its ridge
    over the node's users.
    """
    order = wire.decode_order(message.content)
    rows = open_kept(context, order.run).evaluate(order.task, order.part, order.controls)
    return Message(wire.encode_rows(rows), reply_to=message)


def open_kept(context: Context, run: str) -> Node:
    """Open this node: what the process has loaded, narrowed to the node's users and private adapters."""
    node = copy.copy(
        _loaded(local(_scenario(context.run_id, *_text(context.run_config, "scenario", "overrides")), context.node_config))
    )
    everyone = node.dataset
    for name in _named(context.node_config):
        if name not in everyone.users and name not in everyone.unseen:
            raise InputError(f"users of the node config: the scenario has no user '{name}'{nearest(name, everyone.users)}")
    users, unseen = mine(everyone.users, context.node_config), mine(everyone.unseen, context.node_config)
    node.dataset = replace(everyone, users=users, unseen=unseen)
    node.store = PrivateStore(home() / "nodes" / folder_name(run))
    return node


def local(scenario: Scenario, node_config: Mapping[str, Any]) -> Scenario:
    """A run's scenario on one machine: where its data lies, and what it trains on."""
    path, device = _text(node_config, "data-path", "device")
    found = replace(scenario, data=replace(scenario.data, path=path)) if path else scenario
    return replace(found, engine=replace(found.engine, device=device)) if device else found


def mine(users: Mapping[str, Splits], node_config: Mapping[str, Any]) -> dict[str, Splits]:
    """The users of a data set that a node keeps."""
    if named := _named(node_config):
        return {user: splits for user, splits in users.items() if user in named}
    first, step = int(node_config.get("partition-id", 0)), int(node_config.get("num-partitions", 1))
    if not 0 <= first < step:
        raise InputError(f"node config: partition-id must be between 0 and num-partitions - 1 = {step - 1}, got {first}")
    return {user: users[user] for user in list(users)[first::step]}


def total(releases: Iterable[Release]) -> list[Release]:
    """The sum of releases, which is a release, added up in float64; nothing for nothing."""
    update: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    weight, users = 0.0, 0
    for release in releases:
        weight, users = weight + release.weight, users + release.users
        for name, value in release.update.items():
            update[name] = update[name] + value.double() if name in update else value.double()
        for name, number in release.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + number
    return [Release({n: v.float() for n, v in update.items()}, weight, users, metrics)] if users else []


def _named(node_config: Mapping[str, Any]) -> list[str]:
    return [name.strip() for name in _text(node_config, "users")[0].split(",") if name.strip()]


def _text(config: Mapping[str, Any], *keys: str) -> list[str]:
    return [str(config.get(key, "")) for key in keys]


@functools.lru_cache(maxsize=1)
def _scenario(_run: int, scenario: str, overrides: str) -> Scenario:
    """Read a run's scenario once, not for every message; another run reads again what may by then be another file."""
    return wire.scenario_of({"scenario": scenario, "overrides": overrides})


def _loaded(scenario: Scenario) -> Node:
    if not any(node.scenario == scenario for node in _LOADED):
        base = None
        for old in _LOADED:  # a base bears one tower at a time
            old.close()
            same = old.scenario.model == scenario.model and old.scenario.engine.device == scenario.engine.device
            base = old.base if same else None
        _LOADED.clear()
        _LOADED.append(open_node(scenario, Path(), base))
    return _LOADED[0]

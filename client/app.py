"""The Flower client: which users this node keeps, their training and their evaluation. The body is `client.node.Node`.

A process loads the base model, the data and the adapters' tower once and lends them to every node that it plays, one after
the other: Flower's simulation plays many nodes in one process and needs no second copy, a SuperNode plays one. What belongs to
a node alone is its users and the folder of their private adapters, ``$HOMING_HOME/nodes/<run>/<node>``.

A node keeps the users that ``users`` in its node config names (by commas), or its partition of the scenario's users
(``partition-id`` of ``num-partitions``: every so manieth one), or all that its data has.
"""

import copy
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
from configs.scenario import Scenario, to_yaml
from strategies.admission import refusal
from strategies.base import Release
from strategies.files import home

app = ClientApp()

_LOADED: dict[str, Node] = {}  # at most one: by its scenario, the node that keeps everyone


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
    return Message(wire.encode_releases(releases), reply_to=message)


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
    node = copy.copy(_loaded(wire.scenario_of(context.run_config)))
    everyone = node.dataset
    for name in _named(context.node_config):
        if name not in everyone.users and name not in everyone.unseen:
            raise InputError(f"users of the node config: the scenario has no user '{name}'{nearest(name, everyone.users)}")
    users, unseen = mine(everyone.users, context.node_config), mine(everyone.unseen, context.node_config)
    node.dataset = replace(everyone, users=users, unseen=unseen)
    node.store = PrivateStore(home() / "nodes" / folder_name(run) / place(context))
    return node


def mine(users: Mapping[str, Splits], node_config: Mapping[str, Any]) -> dict[str, Splits]:
    """The users of a data set that a node keeps."""
    if named := _named(node_config):
        return {user: splits for user, splits in users.items() if user in named}
    first, step = int(node_config.get("partition-id", 0)), int(node_config.get("num-partitions", 1))
    return {user: users[user] for user in list(users)[first::step]}


def place(context: Context) -> str:
    """A node's folder. A partition is found again in a later run, when Flower's simulation has given it another id."""
    config = context.node_config
    if "partition-id" in config:
        return f"{config['partition-id']}-of-{config.get('num-partitions', 1)}"
    return str(context.node_id)


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
    return [name.strip() for name in str(node_config.get("users", "")).split(",") if name.strip()]


def _loaded(scenario: Scenario) -> Node:
    key = to_yaml(scenario)
    if key not in _LOADED:
        base = None
        for old in _LOADED.values():  # a base bears one tower at a time
            old.close()
            same = old.scenario.model == scenario.model and old.scenario.engine.device == scenario.engine.device
            base = old.base if same else None
        _LOADED.clear()
        _LOADED[key] = open_node(scenario, Path(), base)
    return _LOADED[key]

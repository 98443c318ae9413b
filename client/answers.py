"""What a node answers to Flower's messages: which users it keeps, their training and their evaluation. The body is `client.node.Node`.

A process loads the base model, the data and the adapters' tower once and lends them to every node that it plays, one after
the other: Flower's simulation plays many nodes in one process and needs no second copy, a SuperNode plays one. What belongs to
a node alone is its users. Their private adapters lie in ``$HOMING_HOME/nodes/<run>``, a folder for each user and none for each
node: Flower gives a node another id when it comes back, and a run may be resumed with its users spread over other nodes.

A node keeps the users that ``users`` in its node config names (by commas), or its partition of the scenario's users
(``partition-id`` of ``num-partitions``: every so manieth one), or all that its data has. What differs from machine to machine
the node config may say instead of the scenario: ``data-path`` for ``data.path``, ``device`` for ``engine.device``. ``store-key`` names
the key that private adapters are sealed with: a file, or ``keyring:NAME``.

Under guarantee E, and under U where users noise their own releases, a node draws its noise from the operating system and books it in
``$HOMING_HOME``, for all runs, before it trains. Under U otherwise it clips each of its users and leaves the rest to the server. A
node that is only played, by a worker of Ray or with ``noise="seed"`` in its config, draws from the scenario's seed, as one fused
process does, and has ledgers for each run beside its private adapters: its promises are those of a simulation.
"""

import copy
import functools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import given, ledgers, outgoing, own_noise, repeats, secure, secure_wire, sending, wire
from client.data.types import Splits
from client.node import Node, open_node
from client.outgoing import Door
from client.private import PrivateStore, folder_name
from client.store import keys
from configs.errors import InputError, nearest
from configs.home import home
from configs.scenario import Scenario, scenario_hash
from strategies.base import Release
from strategies.privacy import rules
from strategies.privacy.noise import declared

app = ClientApp()

_LOADED: list[Node] = []  # at most one, which keeps everyone


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which users may be trained here, and of how many nodes this is one. No counts of examples."""
    door, played = _door(context), simulated(context.node_config)
    with door.closed_to_errors():
        node = open_kept(context, "")
        kept = wire.Kept(tuple(node.users()), int(context.node_config.get("num-partitions", 0)), played, door.lets)
        return door.reply(message, wire.encode_kept(kept), {})


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the users that the order names. Sends one sum where the aggregator needs no more, else a release per user.

    A user whose budget is spent is not trained and sends nothing. Who that is follows from how many examples they have, which is not
    hidden. An order that comes again gets the answer that it got.
    """
    door, played = _door(context), simulated(context.node_config)
    with door.closed_to_errors():
        order, began = wire.decode_order(message.content), time.perf_counter()
        node = opened(context, order)
        load = time.perf_counter() - began
        if node.scenario.privacy.secure:
            raise InputError("privacy.secure: this node lets an update out under masks only")
        with held(node, order):
            asked = repeats.name(message.content)
            content = None if played else repeats.known(home(), order.run, asked)
            if content is None:
                with spending(node, order.run, played):
                    content = wire.encode_releases(_releases(node, order, door, load), order.task.shared)
                if not played:
                    repeats.keep(home(), order.run, asked, content)
                _use(context, order, node)
        return door.reply(message, content, order.task.shared)


@app.train(secure_wire.ACTION)
def train_secure(message: Message, context: Context) -> Message:
    """Train the users that the order names, keep the sum of what they release here, and advertise keys for its masks."""
    door, played = _door(context), simulated(context.node_config)
    with door.closed_to_errors():
        order, call, me = secure_wire.decode_begin(message.content)
        node = opened(context, order)
        how = secure.form(node.scenario, node.split.aggregator, order.task, call)
        bits = secure.seeded(node.scenario, order.task, order.users[0]) if played else None
        with held(node, order), spending(node, order.run, played):
            releases = door.bare(_trained(node, order))
            vector_M = secure.vector(node.scenario, order.task, how, releases, len(order.users), bits)
        _use(context, order, node)
        answer = secure.begin(_sums(order.run, me), how.terms, me, vector_M)
        return door.reply(message, secure_wire.encode_answer(answer), {})


@app.query(secure_wire.ACTION)
def query_secure(message: Message, context: Context) -> Message:
    """Take the next step of the sum that `train_secure` has begun."""
    door = _door(context)
    with door.closed_to_errors():
        step = secure_wire.decode_step(message.content)
        answer = secure.answer(_sums(step.run, step.me), step.step, step.message)
        return door.reply(message, secure_wire.encode_answer(answer), {})


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score a split of this node's users and send a row for each.

    That is what a researcher wants of a simulation. No guarantee covers it: deployed under one, a node refuses, unless the scenario
    waives that.
    Two rows depend on who shares a node: ``shuffled`` takes another user of the same node, ``user_bias`` chooses its ridge
    over the node's users.
    """
    door = _door(context)
    if "scores" not in door.lets:
        raise InputError("scores do not leave a node under a guarantee; where they may, set privacy.waive=[scores]")
    with door.closed_to_errors():
        order = wire.decode_order(message.content)
        node = opened(context, order)
        with node.store.held():
            rows = node.evaluate(order.task, order.part, order.controls)
        _use(context, order, node)
        return door.reply(message, wire.encode_rows(rows), {})


def _releases(node: Node, order: wire.Order, door: Door, load: float) -> Iterable[Release]:
    """What an order to train is answered with."""
    asked = order if "scores" in door.lets else replace(order, task=replace(order.task, rows=()))
    releases = door.bare(_timed(sending.scored(node, asked.task, order.users, _trained(node, order)), load))
    return releases if node.alone else sending.summed(node.scenario, order.task, releases, order.users)


def _trained(node: Node, order: wire.Order) -> Iterable[Release]:
    strangers = [user for user in order.users if user not in node.dataset.users]
    if strangers:
        raise InputError(f"this node keeps no user '{strangers[0]}'")
    own_noise.check(node.scenario, order.task)
    return node.train(order.task, order.users)


def opened(context: Context, order: wire.Order) -> Node:
    """`open_kept`, for an order. Raises `InputError` where it is for another base model or tokenizer than this node has."""
    node = open_kept(context, order.run)
    for name, there, here in zip(("base model", "tokenizer"), order.origin, node.origin, strict=False):
        if there != here:
            raise InputError(
                f"the run is on {name} {there[:12]}, and this node has {here[:12]}; give it the one that the server has (model.name)"
            )
    return node


def held(node: Node, order: wire.Order) -> AbstractContextManager[None]:
    """Keep those users of an order who are this node's to this process."""
    return node.store.held(user for user in order.users if user in node.dataset.users)


def _timed(releases: Iterable[Release], seconds: float) -> Iterator[Release]:
    """The releases, the first of which says how long the base and the data took to be there."""
    for release in releases:
        yield replace(release, metrics={**release.metrics, "load": seconds})
        seconds = 0.0


def _use(context: Context, order: wire.Order, node: Node) -> None:
    """Keep what an order brought for the use of this machine's users; a node that is only played has none."""
    if not simulated(context.node_config):
        given.keep(home(), order.run, node, order.task)


def _sums(run: str, me: str) -> Path:
    """Where a node keeps its part of a sum that has begun."""
    return home() / "sums" / folder_name(run) / folder_name(me)


def open_kept(context: Context, run: str) -> Node:
    """Open this node: what the process has loaded, narrowed to the node's users and private adapters."""
    node = copy.copy(_loaded(local(_asked(context), context.node_config)))
    everyone = node.dataset
    for name in _named(context.node_config):
        if name not in everyone.users and name not in everyone.unseen:
            raise InputError(f"users of the node config: the scenario has no user '{name}'{nearest(name, everyone.users)}")
    users, unseen = mine(everyone.users, context.node_config), mine(everyone.unseen, context.node_config)
    node.dataset = replace(everyone, users=users, unseen=unseen)
    key, played = keys.read(_text(context.node_config, "store-key")[0]), simulated(context.node_config)
    node.store, node.rank = PrivateStore(home() / "nodes" / folder_name(run), key, not played), _rank(context.node_config)
    node.alone = not node.split.aggregator.linear
    return node


def _rank(node_config: Mapping[str, Any]) -> int:
    """The most ranks of the shared LoRA that a node carries; 0: all."""
    rank = node_config.get("rank", 0)
    if not isinstance(rank, int) or rank < 0:
        raise InputError(f"rank in the node config must be 0 (all) or a count of ranks, got {rank!r}")
    return rank


def spending(node: Node, run: str, played: bool) -> AbstractContextManager[None]:
    """Open what a node spends from in a run: ledgers for all that it promises in its life, others where it promises nothing real."""
    for_life, life = not played and node.scenario.privacy.promises, node.scenario.life
    if for_life and life.account == "partition":
        raise InputError(
            "life.account=partition is for simulations: a node's ledger is for all that its users' examples are ever used for"
        )
    name = scenario_hash(node.scenario) if played else f"{run}, period {life.period}" if life.period else run
    return ledgers.opened(node, home() if for_life else node.store.folder, name, played)


def simulated(node_config: Mapping[str, Any]) -> bool:
    """Whether this node is only played. A SuperNode is not, unless its own config has ``noise="seed"``; no server can ask for it."""
    source, ray = declared("node", node_config.get("noise", "")), sys.modules.get("ray")
    return source == "seed" or (not source and ray is not None and ray.is_initialized())


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


def _named(node_config: Mapping[str, Any]) -> list[str]:
    return [name.strip() for name in _text(node_config, "users")[0].split(",") if name.strip()]


def _text(config: Mapping[str, Any], *keys: str) -> list[str]:
    return [str(config.get(key, "")) for key in keys]


def _asked(context: Context) -> Scenario:
    """The run's scenario, which this node does not take part in if a promise of it would not hold."""
    scenario = _scenario(context.run_id, *_text(context.run_config, "scenario", "overrides"))
    rules.refuse(scenario)
    outgoing.agree(scenario, context.node_config)
    return scenario


def _door(context: Context) -> Door:
    return outgoing.door(_asked(context), simulated(context.node_config))


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

"""New users of a run, who were never trained on: how each way serves them with their first n examples, and what goes without it.

For every n a newcomer has their first n privacy units and nothing else. Each way makes their private adapter (``<way>, start``), which
then trains as any user's does after the last round (``<way>, trained``), under the same guarantee and within one budget: a look at the
examples is booked first, and the training is planned with what it leaves. All are scored on the same later examples.

* base, shared: without anything of the newcomer's      * majority: the rates of the n labels
* user_bias: one constant for each label over the shared adapter, fitted to the n; its ridge is chosen on users who trained
* local_only: the private adapter alone, without the shared one, trained on the n as the others are
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from client import ledgers, newcomers
from client.data.types import Splits
from client.node import Node
from client.private import PrivateStore
from client.store.manifest import Made
from configs.errors import InputError
from configs.scenario import Scenario, scenario_hash
from server import checkpoint
from simulations.newcomer.plan import Plan, refuse_unfinished
from simulations.training import World, open_world
from strategies import metrics
from strategies.base import Task
from strategies.compressors import down
from strategies.newcomers.contract import Way
from strategies.newcomers.shared import shared as nothing_more
from strategies.tree import State, nbytes

START, TRAINED = ", start", ", trained"
USUAL = f"shared{TRAINED}"  # what is done without any of this
Row = dict[str, Any]


class Seconds(NamedTuple):
    """How long something took."""

    wall: float
    cpu: float  # of this process: what the wall would say on a machine with nothing else to do, but for waiting on a disk

    @classmethod
    def now(cls) -> "Seconds":
        """Two clocks."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, began: "Seconds") -> "Seconds":
        """From one moment to another."""
        return Seconds(self.wall - began.wall, self.cpu - began.cpu)


@dataclass(frozen=True)
class Ready:
    """A run's node, and what new users of it are sent."""

    node: Node
    round: int  # the run's last
    shared: State
    sent: dict[str, State]
    profiles: dict[str, Tensor]
    reading: dict[str, Seconds]  # what each newcomer's profile took
    plan: Plan

    def task(self, later: int, turns: tuple[str, ...] = ("final",)) -> Task:
        """What is asked after the run's last round."""
        everyone = len(self.node.dataset.unseen)
        return Task(self.round + later, self.shared, turns, self.node.scenario.personalize, cohort=everyone, everyone=everyone)


def measure(scenario: Scenario, folder: Path, asked: Plan) -> Row:
    """One run's newcomers: {row: {n: {metric: mean over newcomers}}}, seconds of each start, bytes that a newcomer is sent."""
    last = refuse_unfinished(scenario, folder)
    world = open_world(scenario)
    if not world.dataset.unseen:
        raise InputError("data.unseen_users: no user is left for it; use a smaller data.users")
    profiles, reading = _profiles(world, asked)
    with checkpoint.held(folder), _opened(scenario, world, folder) as node:
        node.warm()
        sent = _sent(node, last.round, asked, profiles)
        ready = Ready(node, last.round, down(last.shared, scenario.wire), sent, profiles, reading, asked)
        found, seconds = _everything(ready)
    return {
        "run": str(folder), "scenario_hash": scenario_hash(scenario), "seed": scenario.seed, "part": asked.part,
        "newcomers": len(world.dataset.unseen),
        "have": {n: _have(world, n) for n in asked.counts},
        "bytes": {name: nbytes(sent) for name, sent in ready.sent.items()}, "seconds": seconds,
        "rows": {name: {n: _means(rows) for n, rows in by.items()} for name, by in found.items()},
        "against_usual": {name: {n: _gain(rows, found[USUAL][n]) for n, rows in by.items()} for name, by in found.items()},
    }  # fmt: skip


@contextmanager
def _opened(scenario: Scenario, world: World, folder: Path) -> Iterator[Node]:
    store = PrivateStore(folder / "private")
    with closing(Node(scenario, world.base, world.dataset, store)) as node, store.held():
        yield node


def _profiles(world: World, asked: Plan) -> tuple[dict[str, Tensor], dict[str, Seconds]]:
    """What the base makes of everyone's words, before adapters are on it; and how long each newcomer's took, who is read alone."""
    if not any(way.profiles for way in asked.ways.values()):
        return {}, {}
    said, reading = world.dataset.profiles, {}
    found = newcomers.profiles(world.base, {user: said[user] for user in world.dataset.users})
    for user in world.dataset.unseen:
        began = Seconds.now()
        found |= newcomers.profiles(world.base, {user: said[user]})
        reading[user] = Seconds.now().since(began)
    return found, reading


def _sent(node: Node, last: int, asked: Plan, profiles: dict[str, Tensor]) -> dict[str, State]:
    """What each way sends, worked out once."""
    start = {name: value.cpu() for name, value in node.start.items() if node.split.kept(name)}
    users, released = newcomers.released(node, last + 1) if any(w.releases for w in asked.ways.values()) else ([], {})
    if any(w.releases for w in asked.ways.values()) and not users:
        raise InputError(f"{node.store.folder} holds no private adapter that was released; use --ways shared")
    known_KE = torch.stack([profiles[user] for user in users]) if profiles and users else torch.zeros(len(users), 0)
    return {name: way.prepare(start, released, known_KE) for name, way in asked.ways.items()}


def _everything(ready: Ready) -> tuple[dict[str, dict[int, list[Row]]], Row]:
    """Every row at every n, a row per newcomer; and the seconds of each start."""
    found: dict[str, dict[int, list[Row]]] = {}
    seconds: Row = {}
    for n in ready.plan.counts:
        for name, rows in _controls(ready, n):
            found.setdefault(name, {})[n] = rows
        for name, way in ready.plan.ways.items():
            with _newcomers(ready, n) as node:
                started, took = _start(ready, node, way, name)
                found.setdefault(f"{name}{START}", {})[n] = started
                seconds.setdefault(name, {})[n] = {
                    "median": statistics.median(x.wall for x in took), "most": max(x.wall for x in took),
                    "cpu_median": statistics.median(x.cpu for x in took), "cpu_most": max(x.cpu for x in took),
                }  # fmt: skip
                found.setdefault(f"{name}{TRAINED}", {})[n] = _trained(ready, node) if n else started
    return found, seconds


@contextmanager
def _newcomers(ready: Ready, n: int) -> Iterator[Node]:
    """The run's node as that of its newcomers, who have their first n privacy units, with ledgers and a store of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        node = copy.copy(ready.node)
        node.dataset = replace(node.dataset, users=_cut(node.dataset.unseen, n, ready.plan.part), unseen={})
        node.store = PrivateStore(Path(scratch) / "private", flush=False)
        with ledgers.opened(node, Path(scratch), scenario_hash(node.scenario), keyed=True):
            yield node


def _cut(users: dict[str, Splits], n: int, part: str) -> dict[str, Splits]:
    """Users with their first n privacy units; what they are scored on is their test split."""
    return {user: Splits(newcomers.first(s.train, n), (), getattr(s, part)) for user, s in users.items()}


def _start(ready: Ready, node: Node, way: Way, name: str) -> tuple[list[Row], list[Seconds]]:
    """Let a way begin with every newcomer: a row each, and how long each took."""
    took = []
    for user in node.users():
        began, read = Seconds.now(), ready.reading[user] if way.profiles else Seconds(0.0, 0.0)
        state = newcomers.begin(node, way, ready.sent[name], user, ready.task(1), ready.profiles.get(user))
        spent = Seconds.now().since(began)
        took.append(Seconds(spent.wall + read.wall, spent.cpu + read.cpu))
        node.store.save(user, ready.round, state, Made(node.origin))
    return _scored(node, "shared_private", ready.task(1)), took


def _trained(ready: Ready, node: Node) -> list[Row]:
    for _ in node.train(ready.task(1), node.users()):
        pass
    return _scored(node, "shared_private", ready.task(2))


def _scored(node: Node, control: str, task: Task) -> list[Row]:
    users = node.users()
    scores = node.control(control, task, "test", users)
    return _rows(node, users, scores) if scores else []


def _rows(node: Node, users: Sequence[str], scores: Sequence[Tensor]) -> list[Row]:
    """Each user's metrics; {} where they have nothing to be scored on."""
    tests = [node.dataset.users[user].test for user in users]
    return [node.metrics(s, t) if len(t) else {} for s, t in zip(scores, tests, strict=True)]


def _controls(ready: Ready, n: int) -> Iterator[tuple[str, list[Row]]]:
    """The rows that need no way."""
    with _newcomers(ready, n) as node:
        for name in ("base", "shared", "majority"):
            if rows := _scored(node, name, ready.task(1)):
                yield name, rows
        if node.dataset.label_ids:
            yield "user_bias", _user_bias(ready, node, n)
        alone = replace(ready, shared=node.split.shared_start())
        way = nothing_more()
        own = replace(alone, sent={"": way.prepare({k: v for k, v in node.start.items() if node.split.kept(k)}, {}, torch.zeros(0, 0))})
        rows, _ = _start(own, node, way, "")
        yield "local_only", _trained(own, node) if n else rows


def _user_bias(ready: Ready, node: Node, n: int) -> list[Row]:
    """Constants fitted to n examples, as strongly held back as is best for users who trained, with n examples of theirs."""
    seen = {user: replace(s, train=newcomers.first(s.train, n)) for user, s in ready.node.dataset.users.items()}
    both = copy.copy(node)
    both.dataset = replace(node.dataset, users={**seen, **node.dataset.users})
    scores = both.control("user_bias", ready.task(1), "test", [*seen, *node.users()])
    assert scores is not None
    return _rows(node, node.users(), scores[len(seen) :])


def _have(world: World, n: int) -> int:
    """How many newcomers have as many as n privacy units to train on; the others have all of theirs."""
    return sum(len({e.unit for e in s.train}) >= n for s in world.dataset.unseen.values())


def _means(rows: Sequence[Row]) -> Row:
    """Mean over newcomers of each metric, and of the loss the mean of the worst tenth."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    found: Row = {name: metrics.mean(np.array(each)) for name, each in values.items() if each}
    return found | {"worst_decile": metrics.worst_decile(np.array(values["nll"]), False)}


def _gain(rows: Sequence[Row], usual: Sequence[Row]) -> Row:
    """The difference of nll from the usual way's, paired over newcomers; below zero is better."""
    both = [(row["nll"], other["nll"]) for row, other in zip(rows, usual, strict=True) if "nll" in row]
    gain = metrics.paired_gain([a for a, _ in both], [b for _, b in both])
    return {"mean": gain.mean, "ci95": gain.ci95, "p": gain.p, "helped": gain.helped, "harmed": gain.harmed}

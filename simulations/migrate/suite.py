"""A run on another base, from start to report. The old run stays as it was; the new one has its name when it is whole.

Users are moved one by one into a hidden folder beside it, where the same command goes on after a kill. What uses no user's data is
post-processing: ledgers are copied as they are. What trains on data books there before it trains.
"""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from client.migration import keep
from client.migration.move import Loss, bare, names
from client.migration.teach import Teacher
from client.node import Node
from client.private import PrivateStore
from client.store import origin
from client.store.manifest import Made
from configs.errors import InputError
from server import aggregation, checkpoint
from server.checkpoint import Checkpoint
from server.finish import finish
from server.joint import PLAN
from server.sampling import participations
from simulations import making, training
from simulations.folders import of_flower
from simulations.migrate import report
from simulations.migrate.node import copy_ledgers, deployed
from simulations.migrate.plan import Plan
from simulations.migrate.sides import Sides, distilled, mover, opened, world
from simulations.training import World
from strategies.base import Task
from strategies.files import write_text
from strategies.privacy import budget
from strategies.tree import State

PATIENCE = 10.0  # times the noise of a budget that nothing was spent of: whoever needs more has next to nothing left
Say = Callable[[str], None]


class Method(NamedTuple):
    """How a migrator that uses no user's data makes everything."""

    shared: State  # as it travels
    users: keep.Moving
    plain: bool  # every number stays as it is
    lost: Callable[[], float]  # once all are moved


def migrate(asked: Plan, say: Say = lambda _text: None) -> dict[str, Any]:
    """Make the new run in ``asked.out`` and return what its `migrate.json` holds. Raises `InputError`."""
    with checkpoint.held(asked.run), making.made(asked.out, asked.said()) as stage:
        copy_ledgers(asked.run, stage)
        if (asked.run / PLAN).exists() and not asked.migrator.uses_data:
            shutil.copyfile(asked.run / PLAN, stage / PLAN)
        return _retrained(asked, say) if asked.migrator.uses_data else _moved(asked, say)


# ---------------------------------------------------------------------- without users' data
def _moved(asked: Plan, say: Say) -> dict[str, Any]:
    with opened(asked, of_flower(asked.run)) as sides, checkpoint.held(asked.stage):
        began = time.perf_counter()
        last = checkpoint.latest(asked.run, sides.old.origin)
        assert last is not None
        method = _method(asked, sides, last)
        return _kept(asked, sides, last, method, began, say)


def _kept(asked: Plan, sides: Sides, last: Checkpoint, method: Method, began: float, say: Say) -> dict[str, Any]:
    stores = (sides.old.store, sides.new.store) if sides.old.store.folder.exists() else ()
    with ExitStack() as stack:
        for store in stores:
            stack.enter_context(store.held())
        memory = last.memory if method.plain else aggregation.build(asked.new).init(method.shared)
        made, done = Made(sides.new.origin, shared=origin.of_state(method.shared)), 0
        for count in keep.remake(sides.old.store, sides.new.store, last.round + 1, sides.old.origin, made, asked.how, method.users):
            done += count
            say(f"{done} users are on the new base")
        seconds = time.perf_counter() - began
        after = Checkpoint(last.round, method.shared, memory, last.rows, sides.new.origin._replace(adapter=""))
        checkpoint.commit(asked.stage, after)
        checkpoint.begin(asked.stage, asked.new)
        return _reported(asked, sides, last, after, seconds, method.lost())


def _method(asked: Plan, sides: Sides, last: Checkpoint) -> Method:
    how, loss = asked.migrator, Loss()
    if how.ways is None:
        teacher = Teacher(sides.old, sides.new, distilled(sides, last.shared), last.shared, how.steps, how.lr)
        return Method(teacher.shared, teacher.users, False, teacher.lost)
    moving = mover(asked, sides)
    shared = bare(sides.new.split, moving.move(names(sides.old.split, last.shared), loss))

    def lost() -> float:  # of all users, also those who were moved before a kill
        for state in keep.newest(sides.old.store, last.round + 1, sides.old.origin):
            moving.move(state, loss)
        return loss.share

    return Method(shared, lambda _users, states: [moving.move(x) for x in states], moving.plain(), lost)


def _reported(asked: Plan, sides: Sides, last: Checkpoint, after: Checkpoint, seconds: float, lost: float) -> dict[str, Any]:
    if of_flower(asked.run):  # nodes have the data
        known, new = json.loads((asked.run / "flower.json").read_text()), sides.new.origin
        write_text(asked.stage / "flower.json", json.dumps({**known, "run": deployed(known["run"], new.base), "origin": new[:2]}))
        tables = None
    else:
        clock = {"load": time.perf_counter()}
        tables = _evaluated(asked, sides.old, last), _evaluated(asked, sides.new, after)
        finish(asked.stage, tables[1], {**clock, "end": time.perf_counter()}, after)
    bases = {"from": sides.old.origin.base, "to": sides.new.origin.base}
    found = report.of(asked, tables, bases, seconds, lost)
    write_text(asked.stage / report.FILE, json.dumps(found, indent=1))
    return found


def _evaluated(asked: Plan, node: Node, state: Checkpoint) -> list[dict[str, Any]]:
    wanted = dict.fromkeys((*report.ROWS, *asked.new.controls))
    return node.evaluate(Task(state.round + 1, state.shared), "test", tuple(wanted))


# ---------------------------------------------------------------------- on users' data
def _retrained(asked: Plan, say: Say) -> dict[str, Any]:
    """Train anew: what the old run cost counts, and each round is booked beside it before it trains."""
    if of_flower(asked.run):
        raise InputError(
            f"{asked.run} holds a run of Flower, whose nodes keep its users' data; begin another run of theirs by flwr run"
        )
    if asked.key:
        raise InputError("retrain keeps what it trains in the clear; leave out --key, and seal the new run by 'store rekey' afterwards")
    there = world(asked.old)
    here = world(asked.new, there)
    _refuse_spent(asked, here)
    began = time.perf_counter()
    wanted = tuple(dict.fromkeys((*report.ROWS, *asked.new.controls)))
    after, new = training.train(asked.new, here, asked.stage, wanted, lambda row: say(f"round {row['round']}"))
    end = time.perf_counter()
    with closing(Node(asked.old, there.base, there.dataset, PrivateStore(asked.run / "private"))) as node:
        last = checkpoint.latest(asked.run, node.origin)
        assert last is not None
        old, bases = _evaluated(asked, node, last), {"from": node.origin.base, "to": after.origin.base}
    finish(asked.stage, new, {"load": began, "end": end}, after)
    found = report.of(asked, (old, new), bases, end - began, 0.0)
    write_text(asked.stage / report.FILE, json.dumps(found, indent=1))
    return found


def _refuse_spent(asked: Plan, here: World) -> None:
    """Raise `InputError` where nobody's budget allows another training, or only one that is drowned in noise."""
    if not asked.new.privacy.promises_examples:
        return
    with (
        closing(Node(asked.new, here.base, here.dataset, PrivateStore(asked.stage / "none"))) as node,
        training.spending(node, asked.stage),
    ):
        most = participations(asked.new, len(node.users()))
        able = [user for user in node.users() if _affords(node, user, most)]
    if not able:
        raise InputError(
            f"retrain spends, and of privacy.example.epsilon={asked.new.privacy.example.epsilon:g} nobody has anything left; set a "
            "larger one (privacy.example.epsilon=...), or use a migrator that uses no user's data: carry, project, layers, distill"
        )


def _affords(node: Node, user: str, most: int) -> bool:
    assert node.purse
    examples = len(node.dataset.users[user].train)
    left, all_ = node.purse.noise(user, examples, most), budget.noise(node.scenario, examples, most)
    return left is not None and all(noise <= PATIENCE * all_[part] for part, noise in left.items())

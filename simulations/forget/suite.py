"""A run without somebody, from start to report. The old run stays as it was; the new one has its name when it is whole.

What is made lies in a hidden folder beside the old run, where the same command goes on after a kill. The old run's ledgers are copied
to the byte, as proof of what was spent: into ``before/`` of a run that trains anew and books beside them, else to where they were.
"""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

from client import base as bases
from client import data
from client.node import Node
from client.private import PrivateStore
from client.store.shelf import transfer
from configs.errors import InputError
from configs.scenario import Privacy
from server import checkpoint
from server.checkpoint import Checkpoint
from server.finish import finish
from server.report.files import read_rounds, training_seconds
from server.sampling import invited, sample
from server.span import last_round
from simulations import making
from simulations.forget import life, report, verify
from simulations.forget.plan import FILE, Plan
from simulations.forget.search import LEDGERS
from simulations.migrate.node import copy_ledgers
from simulations.run import run as run_scenario
from simulations.training import World
from strategies.base import Task, personal
from strategies.files import write_text

BEFORE = "before"  # the old run's ledgers, in one that trains anew
Say = Callable[[str], None]


def forget(asked: Plan, check: bool = False, say: Say = lambda _text: None) -> dict[str, Any]:
    """Make the new run in ``asked.out``, unless it is there, and return what its `forget.json` holds. Raises `InputError`.

    ``check``: make a run of data in which the forgotten never were, too, and compare.
    """
    if check and asked.old.life.periods:
        raise InputError("--check compares runs, and this is a life; leave it out")
    if asked.out.exists():
        return json.loads((asked.out / FILE).read_text())
    with checkpoint.held(asked.run), making.made(asked.out, asked.said()):
        return _made(asked, check, say)


def _made(asked: Plan, check: bool, say: Say) -> dict[str, Any]:
    base = bases.load(asked.old.model, asked.old.engine.device)
    there = World(base, data.load(asked.old.data, base.tokenizer, asked.old.seed, life.last(asked.old, asked.run).life))
    _refuse_units(asked, there)
    began = time.perf_counter()
    place = asked.stage if asked.way.keeps else asked.stage / BEFORE
    if any((asked.run / name).exists() for name in LEDGERS):
        place.mkdir(exist_ok=True)
        copy_ledgers(asked.run, place)
    if asked.old.life.periods:
        trained = life.replayed(asked, say) if not asked.way.keeps else life.left(asked)
    elif asked.way.trains:
        trained = _trained(asked, say)
    else:
        trained = _left(asked, base, say)
    wall = time.perf_counter() - began
    differs = verify.differs(asked, base, say) if check else None
    found = report.of(asked, there, {"seconds": trained, "wall": wall, "differs": differs})
    write_text(asked.stage / FILE, json.dumps(found, indent=1))
    return found


def _refuse_units(asked: Plan, there: World) -> None:
    """Raise `InputError` where a unit is none of those that the user has trained on."""
    if asked.units:
        (user,) = asked.users
        known = sorted({e.unit for e in report.trained_on(there.dataset, user)})
        if wrong := [unit for unit in asked.units if unit not in known]:
            raise InputError(
                f"--examples: user '{user}' has not trained on unit {wrong[0]}; there are {known[0]} to {known[-1]}, in time"
            )


# ---------------------------------------------------------------------- rounds without them
def _trained(asked: Plan, say: Say) -> float:
    """Replay, or go on from the last round that trained what is shared; seconds of the rounds that were made."""
    first = 0
    if asked.way.keeps:
        last = checkpoint.last(asked.run)
        first = min(last.round, asked.old.rounds)  # a last round that trains only private adapters has left the shared one as it was
        if checkpoint.latest(asked.stage) is None:
            shelve(asked)
            checkpoint.commit(asked.stage, replace(last, round=first, rows=last.rows[:first]))
            checkpoint.begin(asked.stage, asked.new)
    run_scenario(asked.new, asked.stage, lambda row: say(f"round {row['round']} without them"))
    return training_seconds(read_rounds(asked.stage)[first:])


def shelve(asked: Plan) -> None:
    """Give the new run what the old one keeps of everybody else; of a user whose examples go, nothing that has seen them."""
    source, target = PrivateStore(asked.run / "private"), PrivateStore(asked.stage / "private", flush=False)
    shelf = source.shelf()
    for said in list(shelf.manifests()) if shelf else ():
        there = target.begin().manifest(said.user)
        if shelf and said.user not in report.dropped(asked) and not (there and there.versions):
            transfer(said.user, shelf, target.begin())


# ---------------------------------------------------------------------- no round
def _left(asked: Plan, base: bases.Base, say: Say) -> float:
    last, began = checkpoint.last(asked.run), time.perf_counter()
    dataset = data.load(asked.new.data, base.tokenizer, asked.new.seed)
    store = PrivateStore(asked.stage / "private", flush=False)
    plain = replace(asked.new, privacy=Privacy())  # no guarantee speaks for what trains here
    with checkpoint.held(asked.stage), closing(Node(plain, base, dataset, store)) as node:
        shelve(asked)
        trained = 0.0
        if report.dropped(asked) - set(asked.gone):
            start = time.perf_counter()
            again(node, last, asked.users[0])
            trained = time.perf_counter() - start
            say(f"user {asked.users[0]}'s own adapter is trained without them")
        checkpoint.commit(asked.stage, last)
        checkpoint.begin(asked.stage, asked.new)
        table = node.evaluate(Task(last.round + 1, last.shared), "test", asked.new.controls)
        finish(asked.stage, table, {"load": began, "end": time.perf_counter()}, last)
    return trained


def again(node: Node, last: Checkpoint, user: str) -> None:
    """Train a user's own adapter from its start, in the rounds in which it was trained, with the shared one as it has become."""
    scenario, users = node.scenario, invited(node.scenario, node.users())
    if not personal(node.split.scheme):
        return
    for number in range(scenario.private_from + 1, scenario.rounds + 1):
        if user in sample(scenario, users, number):
            list(node.train(Task(number, last.shared, ("private",), everyone=len(users)), [user]))
    if last_round(scenario) > scenario.rounds:
        list(node.train(Task(last_round(scenario), last.shared, ("final",), scenario.personalize, everyone=len(users)), [user]))


def purge(asked: Plan) -> None:
    """Remove the old run, all of it. Its ledgers are in the new one, to the byte."""
    gone = asked.run.with_name(f".{asked.run.name}.gone")
    asked.run.rename(gone)
    shutil.rmtree(gone)

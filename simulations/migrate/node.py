"""One node's store on another base, for a run over Flower: the server's part is `suite`, and each node does its own.

The new store lies beside the old one under the name that the server's new run has, and is there when it is whole.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from client.migration import keep
from client.private import PrivateStore, folder_name
from client.store import disk, keys, places
from client.store.manifest import Made
from configs.errors import InputError, nearest
from configs.scenario import Scenario
from simulations.migrate.plan import Plan, chosen
from simulations.migrate.sides import mover, opened
from strategies.privacy.ledger import JOINT, LEDGER, Ledger

LAST = 2**62  # later than any round


def migrate(scenario: Scenario, run: str, to: str, how: str, options: Sequence[str], home: Path, key: str) -> Iterator[str]:
    """Move what a node keeps under ``run``, and say what came of it. No user's data is read. Raises `InputError`."""
    old = home / "nodes" / folder_name(run)
    if f"nodes/{old.name}" not in places.stores(home):
        known = [name.removeprefix("nodes/").rpartition("-")[0] for name in places.stores(home)]
        raise InputError(f"{home} keeps nothing of a run '{run}'{nearest(run, known)}")
    asked = Plan(old, scenario, replace(scenario, model=replace(scenario.model, name=to)), how, chosen(options), old, key)
    if asked.migrator.ways is None:
        raise InputError(f"{how} trains; a node's store goes by carry, project or layers")
    stage = home / f".migrating-{old.name}"
    with opened(asked, empty=True) as both:
        source, target = PrivateStore(old, keys.read(key)), PrivateStore(stage, keys.read(key))
        new = old.with_name(folder_name(deployed(run, both.new.origin.base)))
        if new.exists():
            raise InputError(f"{new} exists already: this node has moved")
        with source.held(alone=True), target.held(alone=True):
            moving, users = mover(asked, both), 0
            made = Made(both.new.origin)
            for count in keep.remake(source, target, LAST, both.old.origin, made, how, lambda _u, some: [moving.move(x) for x in some]):
                users += count
            copy_ledgers(old, stage)
        stage.rename(new)
        disk.settle(new.parent)
    yield f"{new}: {users} users, by {how}; {old} stays as it was"


def deployed(run: str, base: str) -> str:
    """The id under which nodes keep, on the new base, what they kept under ``run``."""
    return f"{run.partition('@')[0]}@{base[:12]}"


def copy_ledgers(old: Path, new: Path) -> None:
    """Give a folder the ledgers of another one that nobody books in now, to the byte."""
    for name in (LEDGER, JOINT):
        if (old / name).exists() and not (new / name).exists():
            with Ledger(old / name):  # refuses a damaged one
                shutil.copyfile(old / name, scratch := new / f".{name}.tmp")
            disk.publish(scratch, new / name)

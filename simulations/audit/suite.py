"""All three audits of a scenario, audit.json, and a table for people."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE
from rich.table import Table

from client.base import Base
from client.data.types import Dataset, Splits
from configs.scenario import Scenario
from simulations.audit import cross_user, example, joint
from simulations.audit.canary import Result, enough
from simulations.audit.nodes import guarded
from simulations.bench.world import TINY, encoded, random_ids, random_model
from simulations.training import World, open_world
from strategies.files import write_text
from strategies.privacy import rules

QUICK = replace(TINY, hidden=160, users=512, examples=2)


class Canaries(NamedTuple):
    """How many there are; the example audit has one for each of its users."""

    joint: int = 2048
    cross_user: int = 256


ABOUT = {
    "joint": "a user, to whoever sees every shared adapter",
    "example": "an example, to whoever obtains its user's private adapter",
    "cross_user": "an example, to another user: the shared adapters and that user's private one",
}


def run(scenario: Scenario, quick: bool = False, done: Callable[[dict[str, Result]], None] = lambda _: None) -> dict[str, Result]:
    """Audit both guarantees of a scenario, whichever of them it asks for. ``done`` is called with all results so far after each audit.

    ``quick`` takes a tiny random model and made-up users instead of the scenario's. Raises `InputError` for what cannot be audited.
    """
    rules.refuse(guarded(scenario))
    count = Canaries(1024, 64) if quick else Canaries()
    scenario = replace(scenario, engine=replace(scenario.engine, cache="memory")) if quick else scenario
    world = tiny() if quick else open_world(scenario)
    users, privacy = len(world.dataset.users), scenario.privacy
    enough(count.joint, privacy.user.epsilon, privacy.user.delta, "privacy.user")
    enough(min(users, count.cross_user), privacy.example.epsilon, privacy.example.delta, "privacy.example")
    audits: dict[str, Callable[[Path], Result]] = {
        "joint": lambda folder: joint.audit(scenario, world, folder, count.joint),
        "example": lambda folder: example.audit(scenario, world, folder),
        "cross_user": lambda folder: cross_user.audit(scenario, world, folder, count.cross_user),
    }
    found: dict[str, Result] = {}
    for name, audit in audits.items():
        with tempfile.TemporaryDirectory(prefix="homing-audit-") as scratch:
            found[name] = audit(Path(scratch))
        done(found)
    return found


def tiny() -> World:
    """A random model, and users with random tokens."""
    examples = [encoded(ids_NT) for ids_NT in random_ids(QUICK)]
    users = {f"{index:03d}": Splits(x, (), ()) for index, x in enumerate(examples)}
    return World(Base(random_model(QUICK), None, "tiny"), Dataset(users, {}, "text", (), (), "one text", examples[0]))


def failures(found: Mapping[str, Result]) -> Iterator[str]:
    """A sentence for each audit that failed: the claim is refuted, or the audit would not have seen that there is no noise."""
    for name, x in found.items():
        if x.bound > x.claimed:
            yield f"{name}: epsilon is at least {x.bound:.2f} with {x.confidence:.0%} confidence, not {x.claimed:.2f}"
        if x.bound_without_noise <= x.claimed:
            yield f"{name}: without noise it shows {x.bound_without_noise:.2f}, not more than {x.claimed:.2f}; it is too weak to judge"


def write(found: Mapping[str, Result], path: Path) -> None:
    """Write audit.json: name -> claimed, bound, bound_without_noise, confidence, canaries."""
    write_text(path, json.dumps({name: x._asdict() for name, x in found.items()}, indent=2) + "\n")


def table(found: Mapping[str, Result], quick: bool = False) -> Table:
    """The results for a person."""
    shown = Table(title="Quick: a random model" if quick else "", box=SIMPLE, caption="epsilons; an audit never proves one")
    shown.add_column("audit", no_wrap=True)
    for column in ("bound", "claimed", "without noise", "canaries"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, x in found.items():
        held, seen = ("[green]" if ok else "[red]" for ok in (x.bound <= x.claimed, x.bound_without_noise > x.claimed))
        shown.add_row(f"{name}\n  [dim]{ABOUT[name]}[/]", f"{held}{x.bound:.2f}", f"{x.claimed:.2f}",
                      f"{seen}{x.bound_without_noise:.2f}", str(x.canaries))  # fmt: skip
    return shown

"""What is to be forgotten, and what is refused before a model is loaded or a file is written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.data.without import mark
from configs.errors import InputError, nearest
from configs.scenario import Scenario, label, scenario_hash
from server.report.files import read_users
from simulations import folders, making
from simulations.life import periods
from strategies import unlearning
from strategies.unlearning.contract import Way

FILE = "forget.json"


@dataclass(frozen=True)
class Plan:
    """A run, or a life, and who is not to have been there."""

    run: Path
    old: Scenario
    new: Scenario
    users: tuple[str, ...]
    units: tuple[int, ...]  # of the one user: only these; empty: all that they are
    how: str  # a way's name
    options: dict[str, float]  # of it
    out: Path

    @property
    def way(self) -> Way:
        """The method."""
        return unlearning.build(self.how, self.options)

    @property
    def stage(self) -> Path:
        """Where the new run lies until it is whole."""
        return making.stage(self.out)

    @property
    def gone(self) -> tuple[str, ...]:
        """Users of whom nothing is left."""
        return () if self.units else self.users

    @property
    def marks(self) -> list[str]:
        """Who, or what, is forgotten, without a name."""
        return marks(self.users, self.units)

    def said(self) -> dict[str, Any]:
        """What a folder that is being made says of itself: nobody's name."""
        return {"run": str(self.run.resolve()), "scenario": scenario_hash(self.new), "way": self.how, "options": self.options,
                "marks": self.marks}  # fmt: skip


def plan(run: Path, users: Sequence[str], examples: str, how: str, options: dict[str, float], out: Path | None) -> Plan:
    """Read what a person asks for. Raises `InputError`."""
    old, asked = folders.scenario_of(run), tuple(dict.fromkeys(users))
    if folders.of_flower(run):
        raise InputError(
            f"{run} holds a run of Flower, whose nodes keep users: 'store forget' on the node, and another run without them"
        )
    way = unlearning.build(how, options)
    there = known(run, old)
    for user in asked:
        if user not in there:
            raise InputError(f"{run} has not trained on a user '{user}'{nearest(user, there)}")
    units = _units(examples) if examples else ()
    if units and len(asked) != 1:
        raise InputError(f"--examples are of one user, and {len(asked)} are named; give the command once for each")
    if not units and not set(there) - set(asked) - set(old.root_users):
        raise InputError("nobody would be left to train on; forget fewer users, or remove the run's folder")
    _refuse_spending(old, how, way)
    new = without(old, marks(asked, units), () if units else asked)
    if way.rounds:
        alone = old.private_from == old.rounds  # what is private had no turn but the last: nor has it now
        new = replace(new, rounds=old.rounds + way.rounds, private_from=old.private_from + alone * way.rounds)
    found = Plan(run, old, new, asked, units, how, options, out or run.parent / f"{label(new)}-{how}")
    if found.out.exists() and not whole(found):
        raise InputError(f"{found.out} exists already; choose another folder with --out, or remove it")
    return found


def whole(asked: Plan) -> bool:
    """Whether the very run that is asked for is there already."""
    path = asked.out / FILE
    there = json.loads(path.read_text()) if path.exists() else {}
    said = {"users": asked.marks, "way": asked.how, "options": asked.options, "run": str(asked.run)}
    return all(there.get(name) == value for name, value in said.items())


def known(run: Path, scenario: Scenario) -> list[str]:
    """The users that a run, or a life, has trained on. Raises `InputError` where it is not that far yet."""
    if scenario.life.periods:
        over = periods.over(scenario, run)
        if not over:
            raise InputError(f"{run} has no period that is over yet; give 'live' again")
        return sorted({user for number in over for user in _trained(periods.place(run, number))})
    if not (run / "users.csv").exists():
        raise InputError(f"{run} is not finished; go on with resume {run}")
    return _trained(run)


def marks(users: Sequence[str], units: Sequence[int]) -> list[str]:
    """What stands for users, or for units of the one."""
    return [mark(user, unit) for user in users for unit in units or (None,)]


def without(scenario: Scenario, some: Sequence[str], users: Sequence[str]) -> Scenario:
    """The scenario with these marks left out of its data, and these users of the server's own."""
    data = replace(scenario.data, without=tuple(dict.fromkeys((*scenario.data.without, *some))))
    return replace(scenario, data=data, root_users=tuple(user for user in scenario.root_users if user not in users))


def _trained(folder: Path) -> list[str]:
    found = read_users(folder)
    return [name for name, seen in zip(found.names, found.seen, strict=True) if seen]


def _units(said: str) -> tuple[int, ...]:
    """Numbers of privacy units, between commas, or in a file on lines of their own."""
    path = Path(said)
    words = path.read_text().split() if path.is_file() else said.split(",")
    wrong = next((word for word in words if not word.strip().isdecimal()), None)
    if wrong is not None or not words:
        raise InputError(f"--examples takes numbers such as 0,3,4, or a file that holds one on each line, got '{wrong or said}'")
    return tuple(sorted({int(word) for word in words}))


def _refuse_spending(scenario: Scenario, how: str, way: Way) -> None:
    if not (way.keeps and way.trains):
        return
    if scenario.life.periods:
        raise InputError(f"{how} is for one run: a life goes on by itself, so give --with leave and then 'live'")
    if scenario.privacy.guarantee != "off":
        raise InputError(
            f"{how} trains in rounds that privacy.{scenario.privacy.guarantee}'s budget was not planned for; give --with leave, which "
            "its guarantee speaks for, or --with replay"
        )

"""What a migration is asked to do, and what is refused before a model is loaded or a file is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.scenario import Scenario, label, scenario_hash
from server import checkpoint
from simulations import folders, making
from strategies import migrators
from strategies.migrators.terms import Migrator


@dataclass(frozen=True)
class Plan:
    """One run and where it goes."""

    run: Path
    old: Scenario
    new: Scenario
    how: str  # a migrator's name
    options: dict[str, float]  # of it
    out: Path
    key: str = ""  # what the run's store is sealed with

    @property
    def migrator(self) -> Migrator:
        """The method."""
        return migrators.build(self.how, self.options)

    @property
    def stage(self) -> Path:
        """Where the new run lies until it is whole."""
        return making.stage(self.out)

    def said(self) -> dict[str, Any]:
        """What a folder that is being made says of itself."""
        return {"run": str(self.run.resolve()), "scenario": scenario_hash(self.new), "with": self.how, "options": self.options}


def plan(run: Path, to: str, how: str, options: Sequence[str], overrides: Sequence[str], out: Path | None, key: str) -> Plan:
    """Read what a person asks for. Raises `InputError`."""
    old, given = folders.scenario_of(run), chosen(options)
    changed = folders.scenario_of(run, list(overrides)) if overrides else old
    new = replace(changed, model=replace(changed.model, name=to))
    folders.refuse_model(new)
    method = migrators.build(how, given)
    if not method.uses_data and scenario_hash(replace(new, model=old.model)) != scenario_hash(old):
        raise InputError(
            f"{how} keeps all settings but model.*; with --with retrain others may change, such as privacy.example.epsilon"
        )
    found = Plan(run, old, new, how, given, out or run.parent / f"{label(new)}-{how}", key)
    checkpoint.last(run)
    if found.out.exists():
        raise InputError(f"{found.out} exists already; choose another folder with --out, or remove it")
    return found


def chosen(options: Sequence[str]) -> dict[str, float]:
    """A migrator's options, each NAME=NUMBER. Raises `InputError`."""
    return {name: _number(name, value) for name, value in map(_pair, options)}


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"--option takes NAME=NUMBER, got '{text}'")
    return name, value


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"--option {name} must be a number, got '{value}'") from None

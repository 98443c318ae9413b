"""Runs' folders as a person names them, and what is refused before a model is loaded or a file is written."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.errors import InputError, close, did_you_mean, unknown
from configs.scenario import Scenario, load, scenario_hash


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (folder / "scenario.yaml").is_file()


def life_of(folder: Path) -> Path | None:
    """The life whose folder this is, or whose period it is; None where it is neither."""
    for place in (folder, folder.absolute().parent):
        if is_run(place) and (life := scenario_of(place).life).periods and not life.period:
            return folder if place == folder else folder.parent
    return None


def refuse_life(folder: Path) -> None:
    """Raise `InputError` where a folder is a life's, or lies in one, and a run that stands by itself is wanted."""
    if life := life_of(folder):
        what = "holds a life" if life == folder else f"lies in the life {life}"
        again = f"python -m simulations live {life / 'scenario.yaml'} --out {life}"
        raise InputError(f"{folder} {what}, and is no run by itself; go on with the life by: {again}")


def of_flower(folder: Path) -> bool:
    """Whether a folder's run was trained by Flower's nodes, which keep its private adapters."""
    return (folder / "flower.json").is_file()


def scenario_of(folder: Path, overrides: list[str] | None = None) -> Scenario:
    """The scenario of a run's folder. Raises `InputError` where there is none, with the nearest folder that has one."""
    if not is_run(folder):
        beside = {found.parent.name: str(found.parent) for found in folder.parent.glob("*/scenario.yaml")}
        near = did_you_mean(beside[name] for name in close(folder.name, beside, 0.6))
        raise InputError(f"{folder} holds no run: there is no scenario.yaml in it{near}")
    path = folder / "scenario.yaml"
    try:
        found = load(path)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return load(path, overrides) if overrides else found


def refuse(scenario: Scenario, folder: Path) -> None:
    """Raise `InputError` if a scenario names what is not there, or if its run cannot be in this folder.

    Only what costs no time is looked at: names in registries, the device, what the folder holds.
    """
    from client import base, data
    from server import aggregation
    from server.report import controls
    from strategies import schemes
    from strategies.privacy import rules

    refuse_folder(scenario, folder)
    if scenario.life.period > 1:
        raise InputError(f"period {scenario.life.period} of a life goes on from the one before it; give 'live', which runs them all")
    schemes.of(scenario)
    rules.refuse(scenario)
    aggregation.build(scenario)
    for name in scenario.controls:
        if name not in controls.WORDS:
            raise unknown("name in controls", name, controls.WORDS)
    if scenario.data.name not in data.SOURCES:
        raise unknown("data.name", scenario.data.name, data.SOURCES)
    base.resolve_device(scenario.engine.device)
    refuse_model(scenario)


def refuse_folder(scenario: Scenario, folder: Path) -> None:
    """Raise `InputError` if a folder is none, or holds what is not a run of this scenario."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a run needs a folder")
    if of_flower(folder):
        raise InputError(f"{folder} holds a run of Flower, whose nodes keep its private adapters; go on with it by flwr run")
    if not is_run(folder) or scenario_hash(scenario_of(folder)) == scenario_hash(scenario):
        return
    there, here = dict(_leaves(scenario_of(folder))), dict(_leaves(scenario))
    changed = [f"{name} is {there[name]!r} there and {value!r} here" for name, value in here.items() if there[name] != value]
    said = ", ".join(changed[:2]) + (f" and {len(changed) - 2} more" if len(changed) > 2 else "")
    raise InputError(f"{folder} holds a run of another scenario ({said}); choose another folder with --out, or remove it")


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field but the name and the engine, which two runs of one folder may differ in."""
    for field in dataclasses.fields(tree):
        value, name = getattr(tree, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value) and name != "engine":
            yield from _leaves(value, f"{name}.")
        elif name not in ("engine", "name"):
            yield name, value


def refuse_model(scenario: Scenario) -> None:
    """Raise `InputError` for a path that is not there, and say just that; a hub would call it a malformed name."""
    model = scenario.model.name
    path = Path(model)
    if (path.is_absolute() or model.startswith(".") or model.count("/") > 1) and not path.exists():
        beside = {p.name: str(p) for p in path.parent.glob("*") if p.is_dir()}
        raise InputError(f"model.name '{model}' does not exist{did_you_mean(beside[name] for name in close(path.name, beside))}")

"""What is asked of new users, and what is refused before a model is loaded or a file is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from configs.errors import InputError, nearest
from configs.scenario import Scenario, label, load, scenario_hash
from server import checkpoint
from server.rounds import last_round
from server.span import before
from simulations import folders
from strategies import newcomers, schemes
from strategies.newcomers.contract import Way

PARTS = ("test", "validation")


@dataclass(frozen=True)
class Plan:
    """What is measured, on some runs."""

    ways: dict[str, Way]
    counts: tuple[int, ...]  # privacy units that a newcomer has: their first ones; sorted, all different
    part: Literal["test", "validation"]  # of the newcomers' data, on which they are scored


def plan(ways: str, examples: str, part: str) -> Plan:
    """Read what a person asks for: ``nearest:candidates=8`` is a way with an option. Raises `InputError`."""
    if part not in PARTS:
        raise InputError(f"--part must be test or validation, got '{part}'{nearest(part, PARTS)}")
    made = dict(_way(item.strip()) for item in ("shared", *ways.split(",")))  # what all others are held against is always there
    counts = tuple(sorted({_count(item.strip()) for item in examples.split(",")}))
    return Plan(made, counts, "test" if part == "test" else "validation")


def place(word: str, overrides: Sequence[str]) -> tuple[Scenario, Path]:
    """The scenario and the folder of a run, or of the run that a scenario will have. Raises `InputError`.

    Of a run that is there ``private_training`` may be another: it is then how new users train, and says nothing of the others.
    """
    folder = Path(word)
    if not folders.is_run(folder):
        if folder.is_dir() or (len(folder.parts) > 1 and not folder.suffix):
            return folders.scenario_of(folder), folder  # raises, with the nearest run
        scenario = load(word, overrides)
        place = Path("runs") / label(scenario)
        folders.refuse(scenario, place)
        return scenario, place
    old = folders.scenario_of(folder)
    scenario = folders.scenario_of(folder, list(overrides))
    if scenario_hash(replace(scenario, private_training=old.private_training)) != scenario_hash(old):
        raise InputError(
            f"{folder} is a run that is there: only engine.* and private_training.* (how new users train) may be set anew; give a "
            "scenario's name to make another run"
        )
    return scenario, folder


def refuse(scenario: Scenario, folder: Path, asked: Plan) -> None:
    """Raise `InputError` where a run has no newcomers, or a way is none for it."""
    if not scenario.data.unseen_users:
        raise InputError("data.unseen_users is 0, so that there is no new user; make a run with data.unseen_users=60")
    if scenario.life.periods:
        raise InputError(f"life.periods is {scenario.life.periods}; new users need a run of all data at once: life.periods=0")
    scheme = schemes.of(scenario)
    if "private" not in scheme.blocks or scheme.blocks == ("private",) or scheme.twins or scheme.references or scheme.clusters > 1:
        raise InputError(f"scheme '{scenario.scheme}' has no private adapter beside one shared adapter; use a run with scheme=dual")
    if scheme.final.fresh:
        raise InputError(
            f"scheme '{scenario.scheme}' begins private adapters anew, whatever they are given; use a run with scheme=dual"
        )
    if not scenario.personalize:
        raise InputError("personalize is 0: so many epochs a new user trains; make a run with personalize=12")
    for name, way in asked.ways.items():
        newcomers.refuse(scenario, name, way)
    if any(way.profiles for way in asked.ways.values()):
        _refuse_speechless(scenario)
    if folders.of_flower(folder):
        raise InputError(f"{folder} holds a run of Flower, whose nodes keep its private adapters; give a run of this process")


def refuse_unfinished(scenario: Scenario, folder: Path) -> checkpoint.Checkpoint:
    """The run's last round. Raises `InputError` where rounds are left."""
    last = checkpoint.latest(folder)
    if last is None or last.round < before(scenario) + last_round(scenario):
        raise InputError(f"{folder} is not finished; go on with: python -m simulations resume {folder}")
    return last


def _refuse_speechless(scenario: Scenario) -> None:
    from client.data import SOURCES

    if SOURCES[scenario.data.name].profiles is None:
        having = [name for name, source in SOURCES.items() if source.profiles]
        raise InputError(
            f"data.name '{scenario.data.name}' has no profiles that users publish, which hypernet reads (those with: "
            f"{', '.join(having)}); use --ways nearest"
        )


def _way(item: str) -> tuple[str, Way]:
    name, _, options = item.partition(":")
    return item, newcomers.build(name, dict(_option(name, pair) for pair in options.split(":") if pair))


def _option(name: str, pair: str) -> tuple[str, float]:
    key, _, value = pair.partition("=")
    try:
        return key, float(value)
    except ValueError:
        raise InputError(f"option '{key}' of {name} must be a number, such as {name}:{key}=8, got '{value}'") from None


def _count(item: str) -> int:
    if not item.isdigit():
        raise InputError(f"--examples must be counts between commas, such as 0,1,5,20,100, got '{item}'")
    return int(item)

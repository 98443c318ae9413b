"""Whether a deployment's next period is due: its time is over, and if that is asked, enough users have enough examples in it.

Periods must lie in the calendar. With equal counts a new example would move the borders of earlier periods, and be trained on in two.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from client.data.dataset import times
from client.data.periods import of_units
from configs.errors import InputError
from configs.scenario import Scenario
from server import checkpoint
from server.span import last_round
from simulations.folders import is_run, scenario_of


class Reached(NamedTuple):
    """How far a deployment's runs have come."""

    period: int  # which comes next, or goes on; above life.periods: none
    rounds: int = 0  # of it that are done
    since: str = ""  # the folder's name of the run before; "": it is the first period


class Due(NamedTuple):
    """What a timer wants to know."""

    ready: bool
    why: str  # a sentence
    words: str  # for 'deploy run', of a period that is due


def due(scenario: Scenario, reached: Reached, now: float, times_U: Mapping[str, Sequence[float]], examples: int, users: int) -> Due:
    """Decide. ``now``: seconds since 1970. ``times_U``: of each user, when each of their privacy units was, in the same unit.

    ``examples``, ``users``: so many in the period, of so many users at least; 0 examples: the clock alone decides.
    """
    refuse(scenario)
    life, number = scenario.life, reached.period
    if number > life.periods:
        return Due(False, f"all {life.periods} periods are over", "")
    words = f"life.period={number} --out period-{number:04d}" + (f" --from {reached.since}" if reached.since else "")
    if reached.rounds:
        return Due(True, f"period {number} of {life.periods} goes on after {reached.rounds} of {last_round(scenario)} rounds", words)
    end = life.start + number * (life.end - life.start) / life.periods
    if now < end:
        return Due(False, f"period {number} of {life.periods} lasts until {_when(end)}", "")
    found = [of_units(times, [1] * len(times), life, (life.start, life.end)).count(number) for times in times_U.values()]
    enough = sum(count >= examples for count in found)
    told = f"{enough} users have {examples} examples and more in it" if examples else ""
    if examples and enough < users:
        return Due(False, f"period {number} of {life.periods} is over since {_when(end)}, and {told}, where {users} are asked for", "")
    return Due(True, f"period {number} of {life.periods} is over since {_when(end)}{f', and {told}' * bool(told)}", words)


def refuse(scenario: Scenario) -> None:
    """Raise `InputError` for a life whose periods a clock cannot tell."""
    life = scenario.life
    if not life.periods:
        raise InputError("life.periods is 0: a life needs two and more, such as life.periods=12")
    if life.by != "time" or life.end <= life.start:
        raise InputError(
            "due needs life.by=time with life.start and life.end in seconds since 1970: with equal counts, or the data's own first and "
            "last time, new examples would move the borders of earlier periods"
        )


def reached(scenario: Scenario, runs: Path) -> Reached:
    """How far runs have come: ``runs`` is the last one's folder, or the folder in which they are ``period-0001`` and so on.

    Raises `InputError` where that is not there, or holds a period of another life.
    """
    if not runs.is_dir():
        raise InputError(f"--run: {runs} does not exist; make the folder of the runs first, such as home/runs of the server's folder")
    places = [runs] if is_run(runs) and not list(runs.glob("period-*")) else sorted(runs.glob("period-[0-9]*"))
    found = {(one := scenario_of(place)).life.period: (place, one) for place in places if is_run(place)}
    if not found:
        return Reached(1)
    number = max(found)
    place, theirs = found[number]
    if not number or (theirs.life.periods, theirs.life.start, theirs.life.end, last_round(theirs)) != _span(scenario):
        raise InputError(f"--run: {place} is no period of this scenario's life; name the folder in which its periods are")
    last = checkpoint.latest(place)
    done = last.round - (number - 1) * last_round(scenario) if last else 0
    if last and done >= last_round(scenario) and (place / "summary.json").exists():
        return Reached(number + 1, 0, place.name)
    before = found[number - 1][0].name if number - 1 in found else f"period-{number - 1:04d}"
    return Reached(number, done, before if number > 1 else "")


def known(scenario: Scenario, examples: int) -> dict[str, list[float]]:
    """When the examples of this machine's data were; {} where the clock alone decides, and no data are read."""
    return times(scenario.data, scenario.seed) if examples else {}


def _span(scenario: Scenario) -> tuple[int, float, float, int]:
    return scenario.life.periods, scenario.life.start, scenario.life.end, last_round(scenario)


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"

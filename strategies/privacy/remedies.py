"""What would have to change before a part's noise is no larger than the most signal: each change planned anew, never extrapolated.

| lever | what is moved, by a factor | helps |
|---|---|---|
| users | those of a round, and all of them where it matters how many | what is averaged or summed over users |
| numbers | the parameters that train: a smaller rank, a smaller kind | everything: noise grows with sqrt(P) |
| examples | every user's | guarantee E |
| epsilon | the budget | everything |
| rounds | of the run; more of them cost more noise each | a step; over a run little or nothing |
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from scipy.optimize import brentq

from strategies.privacy.planner import Guarantee, Part, Setting, parts

LARGEST_EPSILON = 50.0  # above it, a guarantee says nothing
MOST = 1e6  # times as many users, or examples
EXACT, SAMPLED = 0.005, 0.03  # of a factor, relative: where costs are a closed form, and where each takes seconds to work out


@dataclass(frozen=True)
class Remedy:
    """One lever moved until the ratio is 1, or as far as it goes."""

    lever: str  # "users" (of a round), "numbers", "examples", "epsilon", "rounds"
    before: float
    after: float  # counts are whole
    ratio: float  # noise-to-signal afterwards
    users: int  # altogether, afterwards

    @property
    def enough(self) -> bool:
        """Whether this change alone is enough."""
        return self.ratio <= 1


def ratio(part: Part) -> float:
    """What is to come down to 1: noise-to-signal over the run, or where that is below, of a round's mean."""
    return part.run if part.run > 1 else part.mean


def remedies(setting: Setting, guarantee: Guarantee, part: Part) -> list[Remedy]:
    """Every lever that bears on a part of a plan of ``setting``; () where its ratio is 1 or less."""
    if ratio(part) <= 1:
        return []
    over_run, exact = part.run > 1, EXACT if part.rate == 1 else SAMPLED

    def at(lever: str, factor: float) -> float:
        moved = parts(changed(setting, guarantee, lever, factor), guarantee)
        same = next(x for x in moved if (x.name, x.whose) == (part.name, part.whose))
        return same.run if over_run else same.mean

    found = []
    for lever, limit in limits(setting, guarantee, part).items():
        factor, reached = least(lambda x, lever=lever: at(lever, x), limit, exact)
        then = changed(setting, guarantee, lever, factor)
        stood, stands = (value(x, guarantee, lever, part) for x in (setting, then))
        found.append(Remedy(lever, stood, stands, reached, then.users))
    return found


def limits(setting: Setting, guarantee: Guarantee, part: Part) -> dict[str, float]:
    """How far each lever that bears on a part can be moved, as a factor."""
    scenario = setting.scenario
    far = {"users": MOST} if part.whose == "shared" else {}
    far["numbers"] = float(part.numbers)
    if guarantee == "example":
        far["examples"] = MOST
    far["epsilon"] = max(LARGEST_EPSILON / getattr(scenario.privacy, guarantee).epsilon, 1.0)
    return far if part.name == "final" else far | {"rounds": float(scenario.rounds)}


def changed(setting: Setting, guarantee: Guarantee, lever: str, factor: float) -> Setting:
    """The setting with one lever moved: more users, examples or epsilon, fewer numbers or rounds. Counts are rounded the far way."""
    scenario = setting.scenario
    if lever == "users":
        taken, whole = math.ceil(scenario.users_per_round * factor), math.ceil(setting.users * factor)
        users = max(setting.users, taken) if taken and scenario.sampling == "fixed" else whole
        return replace(setting, users=users, scenario=replace(scenario, users_per_round=taken))
    if lever == "numbers":
        return replace(setting, numbers={key: max(math.floor(p / factor), 1) for key, p in setting.numbers.items()})
    if lever == "examples":
        more = math.ceil(setting.examples * factor)
        return replace(setting, examples=more, units=math.ceil(setting.units * more / setting.examples))
    if lever == "epsilon":
        level = getattr(scenario.privacy, guarantee)
        dearer = replace(scenario.privacy, **{guarantee: replace(level, epsilon=level.epsilon * factor)})
        return replace(setting, scenario=replace(scenario, privacy=dearer))
    fewer = max(math.floor(scenario.rounds / factor), 1)
    since = scenario.private_from * fewer // scenario.rounds
    return replace(setting, scenario=replace(scenario, rounds=fewer, private_from=since))


def value(setting: Setting, guarantee: Guarantee, lever: str, part: Part) -> float:
    """Where a lever stands."""
    if lever == "users":
        return setting.cohorts(setting.scenario, setting.users).expected
    if lever == "numbers":
        return setting.numbers[part.name, part.whose]
    if lever == "examples":
        return setting.examples
    return getattr(setting.scenario.privacy, guarantee).epsilon if lever == "epsilon" else setting.scenario.rounds


def least(ratio_at: Callable[[float], float], limit: float, exact: float = EXACT) -> tuple[float, float]:
    """The least factor from 1 on, to ``exact`` twice and from above, at which a falling ratio is 1 or less, and the ratio there.

    The limit and the ratio there if that is not enough.
    """
    low, high, reached = 1.0, 1.0, ratio_at(1.0)
    while reached > 1 and high < limit:
        low, high = high, min(high * max(reached, 1 + exact), limit)
        reached = ratio_at(high)
    if reached > 1 or low == high:
        return high, reached
    bracket = (math.log(low), math.log(high))
    root = math.exp(float(brentq(lambda x: math.log(ratio_at(math.exp(x))), *bracket, xtol=exact / 2)))  # pyright: ignore[reportArgumentType]
    above = min(root * (1 + exact), high)
    return (above, found) if (found := ratio_at(above)) <= 1 else (high, reached)

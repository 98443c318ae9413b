"""`plan privacy`: the numbers that a plan is made from, out of a scenario's model, data and ledger."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low

from rich.table import Table

from client import base as bases
from client import data
from client.base import Base
from client.split import Split, split
from configs.errors import InputError
from configs.scenario import Adapter, Scenario
from server.joint import cohorts
from server.report import planned
from simulations import accounts
from strategies import schemes
from strategies.base import Phase
from strategies.privacy import budget, joint, planner, rules
from strategies.privacy.accounting import epsilons
from strategies.privacy.events import Event
from strategies.privacy.ledger import Ledger
from strategies.privacy.planner import Guarantee, Part, Setting
from strategies.privacy.remedies import remedies

WHOSE = ("shared", "private")
LARGEST_CORE = 64  # rank


@dataclass(frozen=True)
class Sizes:
    """How many examples users have to train on, and privacy units among them."""

    users: int
    typical: tuple[int, int]  # the median user's examples and units
    fewest: tuple[int, int]
    most: tuple[int, int]


def plan(scenario: Scenario, users: int = 0, examples: int = 0, ledger: Path | None = None) -> Iterator[str | Table]:
    """Plan a scenario's noise, as lines and tables for the terminal. ``users`` and ``examples``: instead of what the data has.

    Raises `InputError` where nothing can be planned.
    """
    base = bases.load(scenario.model, "cpu")
    sizes, found = sizes_of(scenario, base, users, examples), numbers(split(scenario, base))
    asked, off = guarantees(scenario, found), scenario.privacy.guarantee == "off"
    if off:
        yield "privacy=off promises nothing. What a promise would take:"
    for guarantee in asked:
        as_if = replace(scenario, privacy=replace(scenario.privacy, guarantee=guarantee)) if off else scenario
        setting = Setting(as_if, sizes.users, *sizes.typical, found, cohorts, {guarantee: before(ledger, as_if, guarantee)})
        parts = planner.parts(setting, guarantee)
        yield planned.heading(setting, guarantee)
        yield planned.table(parts)
        if guarantee == "example":
            yield from planned.extremes(parts, list(_others(setting, sizes)))
        for part in parts:
            yield from _sentences(setting, guarantee, part, base)
        yield from planned.problems(as_if, list(rules.problems(as_if)))
    yield planned.NOTE


def guarantees(scenario: Scenario, found: dict[tuple[str, str], int]) -> tuple[Guarantee, ...]:
    """What is to be planned: what is promised, or where that is nothing, all that could be."""
    chosen: dict[str, tuple[Guarantee, ...]] = {"example": ("example",), "unclaimed": ("example",), "user": ("user",)}
    asked = chosen.get(scenario.privacy.guarantee, ("example", "user"))
    if found[joint.WHAT, "shared"]:
        return asked
    if scenario.privacy.of_users:
        raise InputError(f"guarantee U is about what is released, and scheme '{scenario.scheme}' releases nothing")
    return ("example",)


def sizes_of(scenario: Scenario, base: Base, users: int, examples: int) -> Sizes:
    """Users and their sizes as given, and what is not given from the data."""
    if users and examples:
        return Sizes(users, *[(examples, examples)] * 3)
    splits = data.load(scenario.data, base.tokenizer, scenario.seed).users
    if not splits:
        raise InputError("data: no user is left to train on")
    found = sorted((len(s.train), len({e.unit for e in s.train})) for s in splits.values())
    if examples:
        return Sizes(len(found), *[(examples, examples)] * 3)
    return Sizes(users or len(found), median_low(found), found[0], found[-1])


def numbers(found: Split) -> dict[tuple[str, str], int]:
    """How many parameters each part trains, of the shared and of the private adapter: the most of any round; (part, whose) -> count."""
    scheme, sizes = found.scheme, {key: value.numel() for key, value in found.start().items()}
    phases: dict[str, Phase] = {budget.label(phase): phase for phase in scheme.phases}
    if "private" in scheme.blocks:
        phases[budget.FINAL] = scheme.final

    def count(phase: Phase, whose: str) -> int:
        moved = [[n for k, n in sizes.items() if found.owner(k) == whose and found.moves(k, phase, number)] for number in (1, 2)]
        return max(map(sum, moved))

    counts = {(name, whose): count(phase, whose) for name, phase in phases.items() for whose in WHOSE}
    released = max(sum(n for key, n in sizes.items() if found.released(key, number)) for number in (1, 2))
    return {key: count for key, count in counts.items() if count} | {(joint.WHAT, "shared"): released}


def ranks(scenario: Scenario, base: Base, part: Part, most: float) -> list[str]:
    """Settings of an adapter under which a part trains at most so many parameters: its own kind with a smaller rank, or a core."""
    block = "private" if part.whose == "private" and "private" in schemes.of(scenario).blocks else "shared"
    config: Adapter = getattr(scenario, block)
    found: dict[int, str] = {}
    for kind in dict.fromkeys((config.kind, "core")):

        def count(rank: int, kind: str = kind) -> int:
            smaller = replace(config, kind=kind, rank=rank, factors="random")
            return numbers(split(replace(scenario, **{block: smaller}), base)).get((part.name, part.whose), 0)

        largest = config.rank if kind == config.kind else LARGEST_CORE
        rank = bisect_right(range(1, largest + 1), most, key=count)
        has, named = count(max(rank, 1)), f"{block}.kind={kind} " if kind != config.kind else ""
        if count(1) < count(largest):
            found.setdefault(has, f"{'' if rank else 'even '}{named}{block}.rank={max(rank, 1)} has {has:,}")
    return list(found.values())


def before(ledger: Path | None, scenario: Scenario, guarantee: Guarantee) -> tuple[Event, ...]:
    """The history of the user who has spent most of a guarantee's budget."""
    if ledger is None:
        return ()
    if not ledger.exists():
        raise InputError(f"--ledger {ledger} does not exist")
    path = accounts.ledgers(ledger).get(guarantee)
    if path is None:
        return ()
    with Ledger(path) as opened:
        histories = list(opened.histories().values())
    costs = epsilons(histories, getattr(scenario.privacy, guarantee).delta, scenario.privacy.accountant)
    return max(zip(costs, histories, strict=True), default=(0.0, ()))[1]


def _others(setting: Setting, sizes: Sizes) -> Iterator[tuple[Setting, Sequence[Part]]]:
    for examples, units in dict.fromkeys((sizes.fewest, sizes.most)):
        if (examples, units) != sizes.typical:
            other = replace(setting, examples=examples, units=units)
            yield other, planner.parts(other, "example")


def _sentences(setting: Setting, guarantee: Guarantee, part: Part, base: Base) -> Iterator[str]:
    found = remedies(setting, guarantee, part)
    fewer = next((x for x in found if x.lever == "numbers"), None)
    yield from planned.sentences(part, found, ranks(setting.scenario, base, part, fewer.after) if fewer else ())

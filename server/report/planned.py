"""`plan privacy` in words: a table of a plan's parts, and a sentence for every change that would make up for its noise."""

from collections.abc import Sequence

from rich.table import Table

from configs.scenario import Scenario
from server.report.guarantees import words
from strategies.privacy import joint
from strategies.privacy.planner import Guarantee, Part, Setting
from strategies.privacy.remedies import Remedy, ratio

NAMES = {
    ("shared", "shared"): "shared adapter",
    ("shared", "private"): "private adapter, beside the shared one",
    ("private", "private"): "private adapter",
    ("private", "shared"): "shared adapter, beside the private one",
    ("final", "private"): "private adapter, after the rounds",
    ("joint", "shared"): "sum of a round",
}
NOTE = (
    "Noise is the root mean square L2 norm of what is added. Signal is the most that there can be: every unit at the clip bound, all "
    "pulling one way in every step. A run learns from less, so 1 is the least to ask for. Over the run counts what adds up: in an "
    "adapter that begins anew each round, what follows that."
)


def name(part: Part) -> str:
    """A part for people."""
    return NAMES.get((part.name, part.whose), f"{part.name}, {part.whose}")


def heading(setting: Setting, guarantee: Guarantee) -> str:
    """What a plan is for."""
    scenario = setting.scenario
    level, cohorts = getattr(scenario.privacy, guarantee), setting.cohorts(scenario, setting.users)
    said = words(guarantee, scenario)
    each = f"; a typical user trains on {setting.examples:,} examples of {setting.units:,} units" if guarantee == "example" else ""
    return (
        f"Guarantee {'E' if guarantee == 'example' else 'U'}, {said.title} ({said.one}): epsilon {level.epsilon:g}, delta "
        f"{level.delta:g} ({scenario.privacy.accountant}); {setting.users:,} users, {cohorts.expected:,} a round, "
        f"{scenario.rounds:,} rounds, at most {cohorts.participations:,} of any one user{each}"
    )


def table(parts: Sequence[Part]) -> Table:
    """A row per part: its noise, and noise-to-signal of a step, of a round's mean over users, of the run."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    found.add_column("part")
    for head in ("parameters", "noise multiplier", "clip", "steps", "rate", "noise / signal: a step", "a round", "the run"):
        found.add_column(head, justify="right")
    for part in parts:
        summed, alone = part.name == joint.WHAT, part.averaged == 1
        counts = (f"{part.numbers:,}", _plain(part.noise), f"{part.clip:g}", f"{part.steps:,}", f"{part.rate:.3g}")
        step, mean = "-" if summed and alone else _plain(part.step), "-" if alone and not summed else _plain(part.mean)
        found.add_row(name(part), *counts, step, mean, _plain(part.run))
    return found


def sentences(part: Part, found: Sequence[Remedy], ranks: Sequence[str] = ()) -> list[str]:
    """What a part's noise comes to, and what would bring it to 1. ``ranks``: settings with few enough parameters."""
    once = "in a step" if part.whose == "private" else "in a round"
    if not found:
        return [f"{name(part)}: no more noise than signal, {_plain(part.mean)} {once} and {_plain(part.run)} over the run."]
    span = "over the run" if part.run > 1 else f"{once}, and {_plain(part.run)} over the run"
    enough = [f"  {_change(x)}{_ranks(x, ranks)}" for x in found if x.enough]
    lead = "Each of these alone would bring it to 1:" if enough else "No one change brings it to 1."
    short = [f"  not enough: {_change(x)}, where it is {_plain(x.ratio)}" for x in found if not x.enough]
    return [f"{name(part)}: noise is {_plain(ratio(part))} times the signal {span}. {lead}", *enough, *short]


def extremes(typical: Sequence[Part], others: Sequence[tuple[Setting, Sequence[Part]]]) -> list[str]:
    """How users with fewer and with more examples stand beside the typical one."""
    usual = {(part.name, part.whose): part.step for part in typical}
    return [
        f"a user with {setting.examples:,} examples: noise / signal of a step "
        + ", ".join(f"{_plain(part.step)} ({name(part)})" for part in parts if (part.name, part.whose) in usual)
        for setting, parts in others
    ]


def _change(x: Remedy) -> str:
    if x.lever == "epsilon":
        return f"epsilon {x.after:.3g} instead of {x.before:g}"
    of = {"users": f" a round of {x.users:,} altogether", "examples": " of each user"}.get(x.lever, "")
    word = {"numbers": "parameter", "users": "user", "examples": "example", "rounds": "round"}[x.lever]
    times = _plain(max(x.after / x.before, x.before / x.after))
    said = f"{x.after:,.0f} {word}{'' if x.after == 1 else 's'}{of} instead of {x.before:,.0f}"
    return f"{said} ({times} times {'as many' if x.after >= x.before else 'fewer'})"


def _ranks(x: Remedy, ranks: Sequence[str]) -> str:
    return f": {'; '.join(ranks)}" if ranks and x.lever == "numbers" else ""


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def problems(scenario: Scenario, found: Sequence[str]) -> list[str]:
    """What the scenario must change before this is a promise at all."""
    return [f"not yet a promise: {sentence}" for sentence in found] if scenario.privacy.guarantee != "unclaimed" else []

"""Before a run: the noise of each part of it for a target epsilon, and how that compares with the most that there is to learn.

A step of a part (under guarantee U: a round) makes public a mean over L examples (users), each unit clipped to a norm of C:

    (sum of clipped + z C N(0, I_P)) / L,    noise: root mean square L2 norm z C sqrt(P) / L,    signal: at most C U / L

where U privacy units are expected among the L examples (of users: U = L). So noise-to-signal is z sqrt(P) / U in a step, that over
sqrt(m) in the mean of m users, and over T steps that add up the signal grows like T and independent noise like sqrt(T).

The signal is the most that there can be: every unit at the bound, all of them pulling one way, in every step. What a run really learns
from is less, so a ratio of 1 is the least to ask for. Learning rates and a server's optimizer scale both alike and are left out.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from configs.scenario import Scenario
from strategies import schemes
from strategies.base import Phase, Scheme
from strategies.privacy import budget, joint, matrix
from strategies.privacy.clipping import split
from strategies.privacy.events import Event
from strategies.privacy.joint import Cohorts

Guarantee = Literal["example", "user"]
SEEN = {"all": 1.0, "support": sum(budget.CUTS) / 2, "query": 1 - sum(budget.CUTS) / 2}  # share of a user's examples, on average


@dataclass(frozen=True)
class Setting:
    """What a plan is made from: public numbers alone."""

    scenario: Scenario
    users: int
    examples: int  # a typical user's, to train on
    units: int  # privacy units among them
    numbers: Mapping[tuple[str, str], int]  # (part, whose: "shared" or "private") -> how many parameters train, P
    cohorts: Callable[[Scenario, int], Cohorts]  # how so many users take part
    spent: Mapping[Guarantee, tuple[Event, ...]] = field(default_factory=dict)  # what ledgers hold already


@dataclass(frozen=True)
class Part:
    """One part of a run: the mean that a step (or round) of it makes public, and what its steps add up to."""

    name: str  # "shared", "private", "final"; "joint"
    whose: str  # what is trained: the "shared" adapter, or the "private" one
    noise: float  # z, the multiplier
    clip: float  # C
    numbers: int  # P
    steps: int  # that the budget pays for: the most that any user takes
    rate: float  # share of a user's examples (of the users) that are expected in one, where nobody learns which; else 1
    signal: float  # the most that a step's mean can be, L2
    deviation: float  # root mean square L2 norm of its noise
    averaged: int  # users whose means are averaged
    kept: float  # steps that are expected to add up in what results
    drift: float  # L2 norm of the noise of their sum, over that of one step

    @property
    def step(self) -> float:
        """Noise-to-signal of one step."""
        return self.deviation / self.signal

    @property
    def mean(self) -> float:
        """Noise-to-signal of one step's mean over the users of a round."""
        return self.step / math.sqrt(self.averaged)

    @property
    def run(self) -> float:
        """Noise-to-signal of all that adds up over the run."""
        return self.mean * self.drift / self.kept


def parts(setting: Setting, guarantee: Guarantee) -> tuple[Part, ...]:
    """Plan the noise of a run. Raises `InputError` where nothing of the budget is left, or no noise is enough."""
    return _of_examples(setting) if guarantee == "example" else (_of_users(setting),)


def _of_examples(setting: Setting) -> tuple[Part, ...]:
    scenario, scheme = setting.scenario, schemes.of(setting.scenario)
    cohorts = setting.cohorts(scenario, setting.users)
    noise = budget.noise(scenario, setting.examples, cohorts.participations, setting.spent.get("example", ()))
    costs = budget.planned(scenario, scheme, setting.examples, cohorts.participations)
    trained = [(name, whose) for name, whose in setting.numbers if name in costs]
    return tuple(_part(setting, scheme, cohorts, name, whose, noise[name], costs[name]) for name, whose in trained)


def _part(setting: Setting, scheme: Scheme, cohorts: Cohorts, name: str, whose: str, noise: float, cost: Event) -> Part:
    scenario, numbers = setting.scenario, setting.numbers[name, whose]
    phase = scheme.final if name == budget.FINAL else next(phase for phase in scheme.phases if phase.name == name)
    how, clip = budget.local(scenario, phase.name), budget.clip(scenario, phase)
    seen = setting.examples * (SEEN[phase.part] if scenario.private_from < scenario.rounds else 1.0)
    length = min(how.batch, seen)
    epochs = scenario.personalize if name == budget.FINAL else how.epochs
    kept = max(_turns(scenario, cohorts, phase, name, whose) * epochs * math.ceil(seen / how.batch), 1.0)
    signal, deviation = clip * setting.units / setting.examples, noise * clip * math.sqrt(numbers) / length
    averaged = cohorts.expected if whose == "shared" else 1
    return Part(name, whose, noise, clip, numbers, cost.steps, cost.rate, signal, deviation, averaged, kept, math.sqrt(kept))


def _turns(scenario: Scenario, cohorts: Cohorts, phase: Phase, name: str, whose: str) -> float:
    """The rounds whose steps add up: all of them in the shared adapter, and a user's own in a private one unless it begins anew."""
    if whose == "shared":
        return scenario.rounds
    waited = scenario.private_from if phase.name == "private" else 0
    return 1.0 if phase.fresh or name == budget.FINAL else (scenario.rounds - waited) * cohorts.expected / cohorts.users


def _of_users(setting: Setting) -> Part:
    scenario, level = setting.scenario, setting.scenario.privacy.user
    cohorts = setting.cohorts(scenario, setting.users)
    plan = joint.plan(scenario, cohorts, setting.spent.get("user", ()))
    cost = joint.event(plan)
    z, one, drift = plan.noise, 1.0, math.sqrt(cohorts.rounds)
    if level.mechanism == "adaptive":
        z = split(z, max(joint.BITS * cohorts.expected, z))
    if level.mechanism == "banded":
        one, total = _correlated(plan.banded())
        drift = total / one
    alone = level.mechanism == "local"  # each release has noise of its own, and their mean has less
    numbers, length = setting.numbers[joint.WHAT, "shared"], 1 if alone else cohorts.expected
    deviation, averaged = one * z * level.clip * math.sqrt(numbers) / length, cohorts.expected if alone else 1
    steps = joint.steps(scenario, cohorts)
    return Part(joint.WHAT, "shared", z, level.clip, numbers, steps, cost.rate, level.clip, deviation, averaged, cohorts.rounds, drift)


def _correlated(how: matrix.Banded) -> tuple[float, float]:
    """Root mean square over rounds of a round's noise, and the last prefix sum's, both over z C."""
    decoder_TT = matrix.decoder(how)
    rounds_TT = decoder_TT.diff(dim=0, prepend=decoder_TT.new_zeros(1, how.rounds))
    return float(rounds_TT.square().sum() / how.rounds) ** 0.5, float(decoder_TT[-1].norm())

"""Guarantee E over a life: how its one budget is spread over periods, when periods may be paid for side by side, what is refused.

Where everybody takes part in every step, costs add up in mu^2 = sum 1 / z^2 (`gaussian`). So the budget's mu^2 is what is spread: after
period t a user may have spent the epsilon of mu^2 times the sum of the shares of periods 1 .. t.

    uniform    equal shares
    decaying   each half of the one before
    demand     the share of a user's training examples that a period has, of those so far and, for each period to come, their mean

**Partition** (parallel composition; McSherry, "Privacy Integrated Queries", SIGMOD 2009, theorem 4). Let the neighbour of a user's data
have nothing in the place of one example, which lies in period j. If

1. every example is trained on in one period only, and nothing else ever looks at it without noise, and
2. no other example's period depends on that one, so that all other periods hold the same examples in both,

then what was released before period j is the same in both, period j is (epsilon_j, delta)-DP in the example, and all that comes later
is made from it and from the other examples: post-processing. So a life costs max_j epsilon_j and not their composition. Condition 1
leaves out replay and importances of data. Condition 2 leaves out equal counts, where one example that is away moves every later
border, and borders at the data's own first and last time: they must be written in the scenario.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from configs.life import Life
from configs.scenario import Scenario
from strategies import drift, keeping, schemes
from strategies.base import Phase, as_it_ended, as_it_is, personal
from strategies.privacy.gaussian import epsilon_for, mu_for


def shares(life: Life, examples: tuple[int, ...] = ()) -> list[float]:
    """What part of a life's mu^2 each period gets, adding up to 1. ``examples``: of periods up to the present one, for ``demand``."""
    if life.spread == "demand" and sum(examples):
        mean = sum(examples) / len(examples)
        weights = [*map(float, examples), *[mean] * (life.periods - len(examples))]
    else:
        weights = [0.5**t if life.spread == "decaying" else 1.0 for t in range(life.periods)]
    return [weight / sum(weights) for weight in weights]


def allowed(scenario: Scenario, examples: tuple[int, ...] = ()) -> float:
    """The epsilon up to which a user may have spent when the scenario's period is over."""
    level, life = scenario.privacy.example, scenario.life
    if not life.period or life.account == "partition" or life.period == life.periods:
        return level.epsilon
    part = sum(shares(life, examples)[: life.period])
    return float(epsilon_for(np.array([mu_for(level.epsilon, level.delta) * part**0.5]), level.delta)[0])


def within(scenario: Scenario, examples: tuple[int, ...] = ()) -> Scenario:
    """The scenario with the budget that its period has."""
    level = replace(scenario.privacy.example, epsilon=allowed(scenario, examples))
    return replace(scenario, privacy=replace(scenario.privacy, example=level))


def payer(scenario: Scenario, user: str) -> str:
    """Under which name a user's costs are booked: under partition each period by itself."""
    life = scenario.life
    return f"{user}, period {life.period} of {life.periods}" if life.period and life.account == "partition" else user


def problems(scenario: Scenario) -> Iterator[str]:
    """All that makes a life mean nothing or its guarantee void, a sentence each."""
    life, keep = scenario.life, keeping.of(scenario)
    if life.period > life.periods:
        yield f"life.period is {life.period}, and the life has life.periods={life.periods}"
    if not life.periods:
        if life != Life():
            yield "life has settings and no periods; set life.periods, such as life.periods=5"
        return
    if not life.period:
        yield f"this scenario is a life of {life.periods} periods; give 'live' instead of 'run', or the period as life.period"
    yield from _kept(scenario)
    if scenario.privacy.of_users or scenario.privacy.secure:
        yield (
            "guarantee U and secure sums are not planned over the periods of a life; set privacy=example, or privacy=off, and "
            "privacy.secure=false"
        )
    if scenario.root_users:
        yield "root_users may be away in a period, and their aggregator needs them in every round; leave root_users empty"
    if scenario.privacy.of_examples and keep.unnoised:
        yield (
            f"life.keep={life.keep} takes importances from examples without noise, so no guarantee for examples holds; set "
            "life.keep_options.fisher=0, which weighs every number alike"
        )
    if life.train == "drift":
        yield from _asked(scenario)
    elif life.detector != Life.detector or life.detector_options:
        yield "life.detector and life.detector_options decide who trains only where life.train=drift; set that, or leave them out"
    if life.account == "partition":
        yield from _partition(scenario)


def _kept(scenario: Scenario) -> Iterator[str]:
    life, keep, scheme = scenario.life, keeping.of(scenario), schemes.of(scenario)
    if life.keep == "sequential":
        return
    if "private" not in scheme.blocks or not personal(scheme):
        yield f"life.keep={life.keep} acts on a private adapter, and scheme '{scenario.scheme}' has none; use dual, or keep=sequential"
    elif any(phase.fresh or phase.part != "all" for phase in (*scheme.phases, scheme.final)):
        yield (
            f"life.keep={life.keep} means nothing for scheme '{scenario.scheme}', whose private adapters begin anew each round or see "
            "parted examples; use dual, or keep=sequential"
        )
    elif scenario.private.kind not in keep.kinds:
        yield (
            f"life.keep={life.keep} is for private.kind {' or '.join(keep.kinds)}, got '{scenario.private.kind}': of a core the frozen "
            "factors leave no other directions; use ewc or replay"
        )


def _asked(scenario: Scenario) -> Iterator[str]:
    """Where private training is decided on, nothing that is sent may hang on the decision, and under guarantee E it is noised."""
    life, scheme, detector = scenario.life, schemes.of(scenario), drift.of(scenario)
    apart = all(phase == _apart(phase) for phase in (*scheme.phases, scheme.final))
    if not apart or "private" not in scheme.blocks or scheme.references:
        yield (
            f"life.train=drift decides on private training alone, and scheme '{scenario.scheme}' has none that stands apart from what "
            "is sent and goes on from round to round; use dual or ditto, or train=always"
        )
    if not scenario.privacy.of_examples:
        if detector.noise:
            yield "life.detector_options.noise is for guarantee E, which is off; leave it out, or set privacy=example"
        return
    level, part = scenario.privacy.example, 1.0 if life.account == "partition" else min(shares(life))
    most = mu_for(level.epsilon, level.delta) * part**0.5  # of the period that has least
    if not detector.noise:
        yield (
            f"life.train=drift with life.detector={life.detector} looks at examples without noise, and whether a private adapter has "
            "trained shows in it, so no guarantee for examples holds; set life.detector=paired and "
            f"life.detector_options.noise={math.ceil(2 / most)}, or train=always"
        )
    elif 1 / detector.noise >= most:
        yield (
            f"life.detector_options.noise={detector.noise:g} takes more than a period's share of privacy.example.epsilon for the look "
            f"alone; set {math.ceil(2 / most)}, which takes a quarter of it, or train=always"
        )


def _apart(phase: Phase) -> Phase:
    """The phase, if it had no part in what is private, or none in anything else."""
    if "private" not in phase.moves:
        return phase
    return phase._replace(name="private", moves=("private",), part="all", fresh=False, begin=as_it_is, end=as_it_ended)


def _partition(scenario: Scenario) -> Iterator[str]:
    life, keep = scenario.life, keeping.of(scenario)
    if keep.replays:
        yield (
            f"life.account=partition needs every example to be trained on in one period only, and life.keep={life.keep} trains on "
            "earlier ones again; set account=sequential, or another way to keep"
        )
    if life.by != "time":
        yield (
            "life.account=partition needs life.by=time: with equal counts one example that is away moves the borders of all later "
            "periods, and then examples are in other periods, too"
        )
    elif life.end <= life.start:
        yield (
            "life.account=partition needs life.start and life.end: borders at the data's own first and last time would move with "
            "those examples"
        )

"""How one user's budget of guarantee E is spent: the noise of each part of a run, fixed before it begins from public numbers alone.

A part (the shared adapter's training, the private one's, and its last one after the rounds) takes T steps on Poisson batches of rate q.
Parts get noise in proportion to q sqrt(T / share): then each takes about its share of mu^2 = sum T q^2 / z^2, the central limit of
what they cost together, and one common factor makes the exact cost of all of them what the budget allows.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from configs.scenario import ExampleLevel, Local, Scenario
from strategies import drift, schemes
from strategies.base import Phase, Scheme, personal
from strategies.privacy import accounting
from strategies.privacy.events import Event

FINAL = "final"
DRIFT = "drift"  # the look by which a period's private training is decided on
SMALLEST = {"all": 1.0, "support": 0.3, "query": 0.2}  # share of a user's examples that a phase sees at least, where each is a unit
CUTS = (SMALLEST["support"], 1 - SMALLEST["query"])  # between which shares of them a support ends


def event(noise: float, examples: int, batch: int, epochs: int) -> Event:
    """What ``epochs`` over so many examples cost each unit: that many full batches, or Poisson batches of the same total size."""
    if batch >= examples:
        return Event(noise, epochs)
    return Event(noise, epochs * math.ceil(examples / batch), batch / examples, "poisson")


def label(phase: Phase, last: bool = False) -> str:
    """What a phase is called in a ledger: "shared", "private", or "final" after the rounds."""
    return FINAL if last else phase.name


def local(scenario: Scenario, name: str) -> Local:
    """The training settings of the phases of a name, "shared" or "private"."""
    return scenario.shared_training if name == "shared" else scenario.private_training


def clip(scenario: Scenario, phase: Phase) -> float:
    """The bound of what one unit adds to a gradient of a phase."""
    level = scenario.privacy.example
    return level.shared_clip if phase.name == "shared" else level.private_clip


def covered(scenario: Scenario, name: str) -> bool:
    """Whether a part of this label trains with noise: what does not is no part of the guarantee, and is not booked."""
    return name == DRIFT or ("private" if name == FINAL else name) in scenario.privacy.example.noised


def together(costs: Mapping[str, Event], scheme: Scheme) -> dict[str, Event]:
    """What the costs of several parts are for any one unit, by the parts that a cost stands for.

    Phases that see a user's earlier and later examples cost a unit the dearer of the two, as it is in one of them. Where sampling
    leaves open which one is dearer, both are counted.
    """
    apart = [label(phase) for phase in scheme.phases if phase.part != "all" and label(phase) in costs]
    if len(apart) < 2 or any(costs[name].sampling != "all" for name in apart):
        return dict(costs)
    dearest = max((costs[name] for name in apart), key=lambda cost: cost.steps / cost.noise**2 if cost.noise else math.inf)
    return {"|".join(apart): dearest, **{name: cost for name, cost in costs.items() if name not in apart}}


def noise(scenario: Scenario, examples: int, participations: int, spent: tuple[Event, ...] = (), replayed: int = 0) -> dict[str, float]:
    """The noise multiplier of each part for a user with so many examples who trains in at most so many rounds.

    ``spent`` is what the user's ledger holds of earlier runs; ``replayed`` as in `planned`. A part that is not to be noised has 0.
    Raises `accounting.SpentError` where nothing of the budget is left.
    """
    level, scheme = scenario.privacy.example, schemes.of(scenario)
    parts = planned(scenario, scheme, examples, participations, replayed)
    shares = _shares(level, scheme, parts)
    weights = {name: cost.rate * math.sqrt(cost.steps / shares[name]) for name, cost in parts.items() if covered(scenario, name)}
    weighted = {name: replace(parts[name], noise=weight) for name, weight in weights.items()}
    costs = tuple(together(weighted, scheme).values())
    common = accounting.noise_factor(costs, level.epsilon, level.delta, scenario.privacy.accountant, (*spent, *drift.look(scenario)))
    return {name: weights.get(name, 0.0) * common for name in parts}


def planned(scenario: Scenario, scheme: Scheme, examples: int, participations: int, replayed: int = 0) -> dict[str, Event]:
    """What each part of a run takes at most of a user, as events with noise 1.

    ``replayed``: further examples of the parts that train what is private.
    """
    found = {}
    for phase in scheme.phases:
        rounds = min(participations, scenario.rounds - scenario.private_from) if _waits(phase, scheme) else participations
        if rounds > 0:
            how = local(scenario, phase.name)
            along = replayed if "private" in phase.moves else 0
            found[label(phase)] = _largest(phase, how, examples + along, how.epochs * rounds)
    if scenario.personalize and personal(scheme):
        found[FINAL] = _largest(scheme.final, local(scenario, scheme.final.name), examples + replayed, scenario.personalize)
    return {name: cost for name, cost in found.items() if cost.steps}


def _waits(phase: Phase, scheme: Scheme) -> bool:
    return phase.name == "private" and "shared" in scheme.blocks


def _largest(phase: Phase, how: Local, examples: int, epochs: int) -> Event:
    """A phase that sees a part of the examples takes at most the steps of all and the rate of the fewest."""
    cost = event(1.0, examples, how.batch, epochs)
    fewest = max(1, math.floor(SMALLEST[phase.part] * examples))
    return cost if cost.sampling == "all" else Event(1.0, cost.steps, min(1.0, how.batch / fewest), "poisson")


def _shares(level: ExampleLevel, scheme: Scheme, parts: Iterable[str]) -> dict[str, float]:
    """Disjoint phases have one share between them, which each may use up."""
    apart = [label(phase) for phase in scheme.phases if phase.part != "all"]
    both = sum(level.shares.get(name, 1.0) for name in apart)
    return {name: both if name in apart else level.shares.get(name, 1.0) for name in parts}

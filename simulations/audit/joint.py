"""User canaries against the shared transcript: can whoever sees every shared adapter of a run say whether one user took part?

Andrew, Kairouz, Oh, Oprea, McMahan & Suriyakumar, "One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024, arXiv
2302.03098, with the coins of `bound` in place of its Gaussian fit, and one number of the shared adapter instead of a random direction
for each canary: no two of them overlap. A canary that is in sends the same update, many times the bound, in every round it is chosen
for, among real users who train. The aggregator is linear, so that the transcript gives the noised sums; what another one makes of
these is post-processing. The attack knows all but the coins: it takes the real users' updates away.

Shape suffixes: T rounds, M canaries.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.node import Node
from configs.errors import InputError
from configs.scenario import Scenario
from server import rounds
from simulations.audit.bound import Floats
from simulations.audit.canary import Result, coins, result
from simulations.audit.nodes import flat, opened
from simulations.training import World
from strategies.aggregators.fedit import fedit
from strategies.base import Release
from strategies.privacy import joint, matrix, user_level
from strategies.privacy.accounting import epsilons
from strategies.privacy.events import Event
from strategies.privacy.joint import Cohorts, Plan
from strategies.privacy.noise import keyed
from strategies.tree import State, generator, subtract

REAL = 8  # users who train
LOUD = 10.0  # norm of a canary's update over the bound: it is for the mechanism to clip it


class Place(NamedTuple):
    """A canary's own number among the shared adapter's."""

    name: str
    entry: int  # of the flattened tensor


def audit(scenario: Scenario, world: World, folder: Path, canaries: int) -> Result:
    """Audit guarantee U with so many canaries in one run. Raises `InputError` where they cannot be told apart."""
    level = scenario.privacy.user
    if level.mechanism == "local":
        raise InputError("privacy.user.mechanism is 'local', which noises no sum to audit; use gaussian, adaptive or banded")
    users = dict(list(world.dataset.users.items())[:REAL])
    scenario = together(scenario, len(world.dataset.users), len(users) + canaries)
    plan = joint.plan(scenario, cohorts(scenario, len(users) + canaries))
    coin_M = coins(canaries, scenario.seed, "joint")
    with opened(scenario, world, users, folder / "joint") as node:
        scores = [_scored(node, each, coin_M) for each in (plan, replace(plan, noise=0.0))]
    return result(_claimed(plan, names(list(users), canaries)), (scores[0], scores[1]), coin_M, level.delta)


def together(scenario: Scenario, before: int, users: int) -> Scenario:
    """The scenario under guarantee U alone among so many users: the same share in a round, or all where a fixed number is drawn."""
    count = 0 if scenario.sampling == "fixed" else round(users * scenario.users_per_round / before)
    privacy = replace(scenario.privacy, guarantee="user")
    return replace(scenario, privacy=privacy, users_per_round=count, weights="uniform", aggregator="fedit", aggregator_options={})


def cohorts(scenario: Scenario, users: int) -> Cohorts:
    """How so many users take part in the scenario's rounds."""
    expected = min(scenario.users_per_round or users, users)
    apart = rounds.turns(scenario, users) if scenario.sampling == "cyclic" else 1
    return Cohorts(users, scenario.rounds, expected, rounds.participations(scenario, users), apart)


def names(real: Sequence[str], canaries: int) -> list[str]:
    """Everyone in a run, sorted."""
    return sorted([*real, *(f"canary {index:06d}" for index in range(canaries))])


def places(shared: State, count: int, seed: int) -> list[Place]:
    """A number of its own for each canary, drawn over all tensors. Raises `InputError` where there are fewer."""
    every = [Place(name, entry) for name in sorted(shared) for entry in range(shared[name].numel())]
    if count > len(every):
        raise InputError(f"{count} canaries need a number each, and the shared adapter has {len(every)}; raise shared.rank")
    return [every[i] for i in torch.randperm(len(every), generator=generator(seed, "places"))[:count].tolist()]


def _scored(node: Node, plan: Plan, coin_M: NDArray[np.bool_]) -> Floats:
    """Log likelihood ratio of "in" to "out", up to a factor, for each canary: over the rounds that it is known to be chosen for."""
    spots = places(node.split.shared_start(), len(coin_M), plan.scenario.seed)
    moves, chosen = zip(*_transcript(node, plan, spots, coin_M), strict=True)
    seen_TM, present_TM = torch.stack(moves), torch.stack(chosen)
    if plan.scenario.privacy.user.mechanism == "banded":  # the noise of the encoded sums is independent
        encoder_TT = matrix.encoder(plan.banded())
        seen_TM, present_TM = encoder_TT @ seen_TM, encoder_TT @ present_TM
    return ((seen_TM * present_TM).sum(0) - present_TM.square().sum(0) / 2).numpy()


def _transcript(node: Node, plan: Plan, spots: Sequence[Place], coin_M: NDArray[np.bool_]) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the rounds. Of each: what every canary's number moved the sum by, over the bound and without the real users, and by how much
    the canary would have, as far as is known; [M] both.
    """
    scenario, shared = plan.scenario, node.split.shared_start()
    aggregator = joint.around(fedit(), plan, lambda number: keyed(scenario.seed, number, "joint"))
    memory, everyone, at_M = aggregator.init(shared), names(node.users(), len(spots)), _at(shared, spots)
    for number in range(1, scenario.rounds + 1):
        chosen = set(rounds.sample(scenario, everyone, number))
        bound = joint.bound(memory) or scenario.privacy.user.clip
        task = rounds.plan(scenario, shared, number, len(everyone))
        known = [user_level.bounded(x, bound) for x in node.train(task, [user for user in node.users() if user in chosen])]
        there = [name in chosen for name in names([], len(spots))]
        sent = [_sent(shared, x, bound) for x, coin, is_there in zip(spots, coin_M, there, strict=True) if coin and is_there]
        memory, after = aggregator.apply(memory, shared, [*known, *sent])
        moved_P = flat(subtract(after, shared)) * plan.cohorts.expected - sum(flat(x.update) for x in known)
        hidden = scenario.sampling == "poisson"
        yield moved_P[at_M] / bound, torch.ones(len(spots)).double() if hidden else torch.tensor(there).double()
        shared = after


def _sent(shared: State, spot: Place, bound: float) -> Release:
    update = torch.zeros(shared[spot.name].numel())
    update[spot.entry] = LOUD * bound
    return Release({spot.name: update.view_as(shared[spot.name])}, 1.0)


def _at(shared: State, spots: Sequence[Place]) -> Tensor:
    """Where canaries' numbers stand in `flat`, int64 [M]."""
    ordered = sorted(shared)
    first = dict(zip(ordered, accumulate((shared[name].numel() for name in ordered), initial=0), strict=False))
    return torch.tensor([first[spot.name] + spot.entry for spot in spots])


def _claimed(plan: Plan, users: Sequence[str]) -> float:
    """The largest epsilon that any user pays for the whole run."""
    level, paid = plan.scenario.privacy.user, defaultdict[str, list[Event]](list)
    for number in range(1, plan.scenario.rounds + 1):
        for user in joint.payers(plan, rounds.sample(plan.scenario, users, number), users):
            paid[user].append(joint.event(plan, number))
    return max(epsilons([tuple(x) for x in paid.values()], level.delta, plan.scenario.privacy.accountant), default=0.0)

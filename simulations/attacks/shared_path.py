"""One example read through the block that is not noised: why guarantee E must cover both.

A user has a data set D, and either does or does not have one example e more. Somebody knows all of D, e, the scenario and the base
model, and guesses whether e was there; that is what differential privacy is about. The private and the shared adapter train in turns
(scheme dual). Many trials differ in the coin for e and in the noise alone. Two runs that by themselves look covered:

=====================  =========================================================================================================
noised                 what is looked at, and how e gets into it
=====================  =========================================================================================================
the private block      the private adapter. e goes un-noised into the shared adapter, under which all examples of D then have other
                       gradients: they move the private adapter by up to 2 |D| C, and its noise was made for C
the shared block       the second release. e goes un-noised into the private adapter, under which D's gradients are other ones too
=====================  =========================================================================================================

and the run under guarantee E, with both noised: there the private adapter is looked at ("both"), or the first release, in which e
itself is ("release"). The guess is the likelihood ratio of the noise, which the attacker has from two runs
of their own without any. In the second run the server sends the same shared adapter twice.

A promise has to hold for every D and every setting, so an attack may choose them: D moves nothing by itself (`neighbours`), and the
un-noised block has so large a learning rate that e alone changes every answer.

Shape suffixes: P numbers looked at, M trials.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from client.data.types import Encoded
from configs.scenario import Scenario
from simulations.attacks import world as worlds
from simulations.audit.bound import bound
from simulations.audit.canary import coins, likelihood, silent
from simulations.audit.nodes import flat, private
from simulations.training import World
from strategies.metrics import auc

PAIRS = 24  # examples of D, by two
ADAPTER = replace(worlds.LORA, rank=2)  # both: small, so that many trials take seconds
FAR, NEAR = 1e5, 1e-3  # learning rates of the block that is not noised, and of the other one
CLIP = 1e-2  # below every gradient of a model that does not know the answer


@dataclass(frozen=True)
class Told:
    """How well the two cases are told apart."""

    claimed: float  # epsilon of the noised block by itself
    trials: int
    auc: float  # 0.5: not at all
    bound: float  # epsilon is above this, with 95 % confidence (`audit.bound`); 0: nothing is shown


def shared_path(scenario: Scenario, world: World, noised: str, epsilon: float, trials: int) -> Told:
    """Tell whether the example was there; ``noised``: "private", "shared", "both" or "release"."""
    run, coin_M = _run(scenario, noised, epsilon), coins(trials, scenario.seed, "attack", noised)
    cases = neighbours(world)
    out_P, in_P = (_seen(worlds.unclaimed(run, ()), world, [x], noised) for x in cases)
    score_M = likelihood(_seen(run, world, [cases[int(there)] for there in coin_M], noised), out_P, in_P)
    return Told(epsilon, trials, auc(score_M, coin_M) or 0.5, bound(score_M, coin_M, scenario.privacy.example.delta))


def neighbours(world: World) -> tuple[list[Encoded], list[Encoded]]:
    """D with nothing in the place of e, and with e.

    D is a worst case: one prompt, as often with one answer as with the other. Their clipped gradients cancel out.
    """
    extra, other, *_ = worlds.catalogue(world).values()
    extra = replace(extra, unit=2 * PAIRS)
    known = [replace(other, label=label, unit=2 * at + label) for at in range(PAIRS) for label in (0, 1)]
    return [*known, silent(extra)], [*known, extra]


def _run(scenario: Scenario, noised: str, epsilon: float) -> Scenario:
    far, near = (replace(worlds.STEP, lr=lr) for lr in (FAR, NEAR))
    run = worlds.guarded(worlds.one_round(scenario, "dual", ADAPTER, near), epsilon)
    run = replace(run, private_training=far, rounds=2) if noised == "shared" else replace(run, shared_training=far)
    level = replace(run.privacy.example, shared_clip=CLIP, private_clip=CLIP)
    run = replace(run, privacy=replace(run.privacy, example=level))
    return run if noised in ("both", "release") else worlds.unclaimed(run, (noised,))


def _seen(run: Scenario, world: World, trials: Sequence[Sequence[Encoded]], noised: str) -> Tensor:
    """What the attacker looks at in each trial, float64 [M, P]: every trial is a user of their own, with noise of their own."""
    with worlds.opened(run, world, {f"{i:04d}": examples for i, examples in enumerate(trials)}) as node:
        releases = worlds.train(node)
        if noised in ("private", "both"):
            return torch.stack([private(node, user) for user in node.users()])
        releases = worlds.train(node, number=2) if noised == "shared" else releases
        return torch.stack([flat(x.update) for x in releases.values()])

"""A canary of one user against what another one holds: does an example travel from A, through the shared adapter, to B?

Many federations of the same two users, A and B, each with a coin that puts the canary among A's examples, and with noise of its own:
independent trials. Two users are the worst case, as an average over more hides more. The attack sees every shared adapter of the run
and the private adapter that B ends with, and knows all but the coin: what A and B give without noise, with the canary and without it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.data.types import Splits
from client.node import Node
from configs.scenario import Scenario
from server import aggregation, rounds
from simulations.audit.bound import Floats
from simulations.audit.canary import Result, coins, example, holding, likelihood, result
from simulations.audit.nodes import claimed, flat, guarded, opened, private, unnoised
from simulations.training import World
from strategies.tree import subtract

Views = list[Tensor]  # what is seen of each trial: the shared adapter's move in each round, and B's private adapter; [M, P] each


def audit(scenario: Scenario, world: World, folder: Path, canaries: int) -> Result:
    """Audit so many federations of a world's first two users."""
    level = scenario.privacy.example
    scenario = guarded(replace(scenario, users_per_round=0, sampling="fixed"))
    coin_M = coins(canaries, scenario.seed, "cross_user")
    (reference, _), tossed = _views(unnoised(scenario), world, folder / "known", [False, True]), coin_M.tolist()
    seen, epsilon = _views(scenario, world, folder / "noised", tossed)
    plain, _ = _views(unnoised(scenario), world, folder / "unnoised", tossed)
    return result(epsilon, (_score(seen, reference), _score(plain, reference)), coin_M, level.delta)


def _score(views: Views, reference: Views) -> Floats:
    return np.sum([likelihood(x_MP, known_2P[:1], known_2P[1:]) for x_MP, known_2P in zip(views, reference, strict=True)], axis=0)


def _views(scenario: Scenario, world: World, folder: Path, there: Sequence[bool]) -> tuple[Views, float]:
    """What is seen of a federation for each element of ``there``, and what A's ledger claims."""
    a, b = list(world.dataset.users.values())[:2]
    canary = example(world.base, world.dataset, scenario.seed)
    users: dict[str, Splits] = {}
    for index, holds in enumerate(there):
        users |= {f"{index}/a": holding(a, canary, holds), f"{index}/b": Splits(b.train, (), ())}
    with opened(scenario, world, users, folder) as node:
        trials = [_federation(node, f"{index}/a", f"{index}/b") for index in range(len(there))]
        return [torch.stack(view) for view in zip(*trials, strict=True)], claimed(node)


def _federation(node: Node, a: str, b: str) -> list[Tensor]:
    """Run one federation to its end."""
    aggregator, shared, moves = aggregation.build(node.scenario), node.split.shared_start(), []
    memory = aggregator.init(shared)
    for number in range(1, rounds.last_round(node.scenario) + 1):
        task = rounds.plan(node.scenario, shared, number, 2)
        memory, after = aggregator.apply(memory, shared, node.train(task, [a, b]))
        moves, shared = [*moves, flat(subtract(after, shared))], after
    return [*moves, private(node, b)]

"""Example canaries against a private adapter: can whoever obtains an adapter say whether one example was in its user's data?

Every user trains alone, by the scenario's private training under guarantee E, with a canary that a coin of their own put there. The
trainings have nothing in common, so one pass of all users gives as many independent trials. The attack is white-box and knows all but
the coin: it trains the same user without noise, once with the canary and once without it, and asks which end the adapter is nearer to.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from client.node import Node
from configs.scenario import Scenario
from server import rounds
from simulations.audit.canary import Result, coins, example, holding, likelihood, result
from simulations.audit.nodes import claimed, guarded, opened, private, unnoised
from simulations.training import World


def audit(scenario: Scenario, world: World, folder: Path) -> Result:
    """Audit the private adapters of all of a world's users."""
    level = scenario.privacy.example
    scenario = guarded(replace(scenario, scheme="local_only", scheme_options={}, users_per_round=0))
    canary, users = example(world.base, world.dataset, scenario.seed), world.dataset.users
    coin_M = coins(len(users), scenario.seed, "example")

    def ends(name: str, scenario: Scenario, there: Mapping[str, bool]) -> tuple[Tensor, float]:
        holders = {user: holding(splits, canary, there[user]) for user, splits in users.items()}
        with opened(scenario, world, holders, folder / name) as node:
            return trained(node), claimed(node)

    in_MP, _ = ends("in", unnoised(scenario), dict.fromkeys(users, True))
    out_MP, _ = ends("out", unnoised(scenario), dict.fromkeys(users, False))
    tossed = dict(zip(users, coin_M.tolist(), strict=True))
    seen_MP, epsilon = ends("noised", scenario, tossed)
    plain_MP, _ = ends("unnoised", unnoised(scenario), tossed)
    scores = likelihood(seen_MP, out_MP, in_MP), likelihood(plain_MP, out_MP, in_MP)
    return result(epsilon, scores, coin_M, level.delta)


def trained(node: Node) -> Tensor:
    """Each user's private adapter after the last round, [M, P]."""
    users, shared = node.users(), node.split.shared_start()
    for number in range(1, rounds.last_round(node.scenario) + 1):
        list(node.train(rounds.plan(node.scenario, shared, number, len(users)), users))
    return torch.stack([private(node, user) for user in users])

"""Was this example in the training data? Asked of whoever obtains an adapter that was trained on one user's data alone.

Carlini, Chien, Nasr, Song, Terzis & Tramer, "Membership Inference Attacks From First Principles", IEEE S&P 2022, arXiv 2112.03570,
algorithm 1 (LiRA). The attacker knows everything about a user's examples but which of them were there: a coin of its own says that
for each. They train the same adapter on coins that they toss themselves (the shadows), and compare how sure the adapter is of an
example's answer with how sure the shadows are that had the example, and those that had it not:

    x = log p / (1 - p),    score = log N(x; m_in, s_in^2) - log N(x; m_out, s_out^2)

Each training is attacked once and is a shadow for the others. What the attacker needs of an adapter is its answers: one that is stolen
from a device, that is served to others, or that a release gives away.

Deviations. An example that is out has nothing in its place, as in guarantee E, so that its epsilon bounds every score. One variance for
all of a user's examples, as the paper takes it for few shadows; a mean counts the mean of all shadows as one more of them.

Shape suffixes: D trainings on one user's data, S shadows, N examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.types import Encoded
from client.score import nats, scores
from client.train import together
from configs.scenario import Adapter, Local, Scenario
from simulations.attacks import world as worlds
from simulations.audit.bound import Floats
from simulations.audit.canary import coins, silent
from simulations.training import World
from strategies.metrics import auc

ADAPTER = Adapter(rank=4, alpha=8.0, layers=1, targets=("down_proj",))
TRAINING = Local(optimizer="adamw", lr=1e-2, epochs=50, batch=worlds.ALL)
TRAININGS = 16  # D
FALSE = 0.01  # share of the others that an attacker may take for members
SURE = 15.0  # |x| beyond which a float32 loss tells nothing apart


@dataclass(frozen=True)
class Membership:
    """How well members are told from others, over all users and trainings together."""

    members: int
    others: int
    auc: float  # 0.5: not at all
    caught: float  # share of members whose score is above all but 1 % of the others'; 0.01: not at all


def membership(scenario: Scenario, world: World, epsilon: float, users: int, trainings: int = TRAININGS) -> Membership:
    """Ask adapters of so many users; ``epsilon`` of guarantee E, 0: without noise."""
    attacked = worlds.guarded(worlds.one_round(scenario, "local_only", ADAPTER, TRAINING), epsilon)
    pools = list(islice(worlds.everyone(world).values(), users))
    coin_DN = [coins(trainings * len(x), scenario.seed, k, "membership").reshape(trainings, -1) for k, x in enumerate(pools)]
    sure_DN = np.split(_sureness(attacked, world, pools, coin_DN), np.cumsum([c.size for c in coin_DN])[:-1])
    score = np.concatenate([ratios(x.reshape(c.shape), c).ravel() for x, c in zip(sure_DN, coin_DN, strict=True)])
    there = np.concatenate([c.ravel() for c in coin_DN])
    border = np.quantile(score[~there], 1 - FALSE, method="higher")
    return Membership(int(there.sum()), int((~there).sum()), float(auc(score, there) or 0.5), float(np.mean(score[there] > border)))


def ratios(sure_DN: Floats, coin_DN: NDArray[np.bool_]) -> Floats:
    """Log likelihood ratio of "in" to "out" of each example in each training, which the others judge, [D, N]."""
    rest = [np.arange(len(sure_DN)) != d for d in range(len(sure_DN))]
    return np.stack([_density(x_N, sure_DN[k], coin_DN[k]) - _density(x_N, sure_DN[k], ~coin_DN[k])
                     for x_N, k in zip(sure_DN, rest, strict=True)])  # fmt: skip


def _density(x_N: Floats, shadow_SN: Floats, which_SN: NDArray[np.bool_]) -> Floats:
    """Log density of what is seen, under a normal fitted to the shadows that ``which_SN`` names."""
    mean_N = ((shadow_SN * which_SN).sum(0) + shadow_SN.mean(0)) / (which_SN.sum(0) + 1)
    deviation = max(float(np.sqrt(np.square((shadow_SN - mean_N)[which_SN]).mean())), 1e-6)
    return -np.square((x_N - mean_N) / deviation) / 2 - np.log(deviation)


def _sureness(scenario: Scenario, world: World, pools: Sequence[Sequence[Encoded]], coin_DN: Sequence[NDArray[np.bool_]]) -> Floats:
    """How sure each adapter is of each example of its user's, user by user and training by training."""
    users = {
        f"{user:03d}/{number:02d}": [e if there else silent(e) for e, there in zip(pool, coin_N, strict=True)]
        for user, (pool, tossed) in enumerate(zip(pools, coin_DN, strict=True))
        for number, coin_N in enumerate(tossed)
    }
    work = [pools[int(user.partition("/")[0])] for user in users]
    with worlds.opened(scenario, world, users) as node:
        worlds.train(node)
        states = [{**node.split.start(), **(node.store.load(user, 2) or {})} for user in users]
        found = scores(node.tower, node.trainer.blocks(together(states)), work, scenario.engine, world.dataset.label_ids)
    return torch.cat([_sure(x, examples) for x, examples in zip(found, work, strict=True)]).numpy()


def _sure(score: Tensor, examples: Sequence[Encoded]) -> Tensor:
    """The x of each example's answer, or of its tokens' mean probability, from what `scores` says."""
    loss_n, count_n = nats(score, examples)
    loss = (loss_n / count_n).double()
    return (-loss - torch.log(-torch.expm1(-loss))).clamp(-SURE, SURE)

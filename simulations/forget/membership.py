"""Were they there? Asked of all that is kept, before and after somebody was forgotten.

The score of a user is by how much the model that is kept for them does better than the base alone, in nats, on what they have trained
on: a threshold on the loss, corrected for how hard the texts are (Yeom et al., "Privacy Risk in Machine Learning", CSF 2018, arXiv
1709.01604; Watson et al., "On the Importance of Difficulty Calibration in Membership Inference Attacks", ICLR 2022, arXiv 2111.08440).
The AUC is the chance that somebody who was there scores above somebody who never was. Where users were chosen by lot, as by the data's
seed, those who are forgotten and those who never were there are alike but for having been there: 0.5 says that nothing is left.

`own` asks whoever has all that is kept: the user's own adapter, if there still is one, with the shared one. `shared` asks whoever has
the shared adapter only. For single examples the same is asked of them and of the user's test examples, which nothing trains on.

M members, N others, B resamples.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.data.types import Encoded, Splits
from client.node import Node
from client.score import nats
from simulations.life.judge import ROWS
from strategies.base import Task

RESAMPLES = 2000  # B
Work = Mapping[str, Sequence[Encoded]]
Floats = NDArray[np.float64]


class Told(NamedTuple):
    """How well members are told from others."""

    auc: float
    interval: tuple[float, float]  # 95 %: both groups drawn anew, with replacement
    chance: tuple[float, float]  # where 95 % of AUCs lie if nobody was there: both groups dealt anew
    members: int
    others: int


@dataclass(frozen=True)
class Asked:
    """Who, or what, is looked for."""

    members: Work
    others: Work
    control: Work  # who was there, and still is
    single: bool = False  # examples count, and not users


def told(node: Node, task: Task, asked: Asked) -> dict[str, dict[str, Told]]:
    """By adversary ("own", "shared") what a node's models tell of members and of the control."""
    found: dict[str, dict[str, Told]] = {}
    for name, rows in (("own", ROWS), ("shared", ("shared",))):
        scores = [gains(node, task, rows, work) for work in (asked.members, asked.others, asked.control)]
        member_M, other_N, control_M = (_flat(x, asked.single) for x in scores)
        if len(member_M) and len(other_N):
            found[name] = {"members": judged(member_M, other_N)} | ({"control": judged(control_M, other_N)} if len(control_M) else {})
    return found


def gains(node: Node, task: Task, rows: Sequence[str], work: Work) -> list[Floats]:
    """By how much the first of ``rows`` that the scheme has beats the base on each example, user by user; [] where it has none."""
    seen, users = copy.copy(node), [user for user in work if len(work[user])]
    seen.dataset = replace(node.dataset, users={user: Splits((), (), tuple(work[user])) for user in users}, unseen={})
    kept = next((found for row in rows if (found := seen.control(row, task, "test", users)) is not None), None)
    base = seen.control("base", task, "test", users)
    if kept is None or base is None:
        return []
    return [(losses(b, work[user]) - losses(k, work[user])).numpy() for user, b, k in zip(users, base, kept, strict=True)]


def losses(score: Tensor, examples: Sequence[Encoded]) -> Tensor:
    """The loss of each example, float64 in nats per choice or token, from what `Node.control` says."""
    loss_n, count_n = nats(score.double(), examples)
    return loss_n / count_n


def judged(member_M: Floats, other_N: Floats, seed: int = 0) -> Told:
    """The AUC of two groups of scores, with how sure it is. P = M + N of both together."""
    draw, count, rest = np.random.default_rng(seed), len(member_M), len(other_N)
    both_P = np.concatenate([member_M, other_N])
    won_PP = above(both_P, both_P)
    drawn_BM, drawn_BN = (draw.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in (count, rest))
    dealt_BP = draw.permuted(np.tile(np.arange(count + rest) < count, (RESAMPLES, 1)), axis=1).astype(float)
    drawn_B = ((drawn_BM @ won_PP[:count, count:]) * drawn_BN).sum(1) / (count * rest)
    dealt_B = ((dealt_BP @ won_PP) * (1 - dealt_BP)).sum(1) / (count * rest)
    return Told(float(won_PP[:count, count:].mean()), _middle(drawn_B), _middle(dealt_B), count, rest)


def above(one_M: Floats, other_N: Floats) -> Floats:
    """Whether each score is above each other one, [M, N]; a tie counts one half. Its mean is the AUC."""
    return (one_M[:, None] > other_N) + 0.5 * (one_M[:, None] == other_N)


def _middle(values_B: Floats) -> tuple[float, float]:
    low, high = np.quantile(values_B, [0.025, 0.975])
    return float(low), float(high)


def _flat(found: Sequence[Floats], single: bool) -> Floats:
    if not found:
        return np.zeros(0)
    return np.concatenate(found) if single else np.array([x.mean() for x in found])

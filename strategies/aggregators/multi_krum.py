"""Multi-Krum: the mean of the updates that lie closest to their neighbours.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017, arXiv 1703.02757, section 4;
over users of equal weight.

    f = share K,    score_k = sum of the K - f - 2 smallest ||x_k - x_j||^2,    x <- x + mean of the K - f lowest
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from strategies.base import Aggregator, Release
from strategies.options import within
from strategies.tree import State
from strategies.users import combined, gram, squared_distances, updates


def multi_krum(share: float = 0.2) -> Aggregator:
    """Build Multi-Krum. Not linear; its time grows with the square of the number of users. ``share`` of them may be adversaries."""
    return selecting(share, lambda count, adversaries: count - adversaries)


def selecting(share: float, keep: Callable[[int, int], int]) -> Aggregator:
    """The mean of so many of the best: ``keep(users, adversaries)``."""
    within("share", share, 0, 0.5)

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        found = updates(releases, shared)
        if not found:
            return memory, shared
        adversaries = int(share * len(found) + 1e-9)
        best = closest(gram(found), adversaries)[: max(1, keep(len(found), adversaries))]
        share_K = torch.zeros(len(found))
        share_K[best] = 1 / len(best)
        return memory, combined(shared, found, share_K)

    return Aggregator(lambda _: {}, apply, lambda _: ("lora_A", "lora_B"), linear=False, paper="arXiv 1703.02757", individual=True,
                      pairwise=True)  # fmt: skip


def closest(gram_KK: Tensor, adversaries: int) -> list[int]:
    """All users by their scores; the shorter update first where two are equal, as each other's only neighbours are."""
    neighbours = max(1, len(gram_KK) - adversaries - 2)
    score_K = squared_distances(gram_KK).sort(1).values[:, 1 : 1 + neighbours].sum(1)
    rounded_K = score_K.log().round(decimals=9)
    return np.lexsort((gram_KK.diagonal().numpy(), rounded_K.numpy())).tolist()

"""Geometric median: the point whose summed distance to the users' updates is least. Half of the users cannot move it far.

Pillutla, Kakade & Harchaoui, "Robust Aggregation for Federated Learning", arXiv 1912.13445, algorithm 2 (smoothed Weiszfeld); over
users of equal weight.

    c_k <- 1 / max(nu, ||x_k - z||),    z <- sum_k c_k x_k / sum_k c_k

Here c [K] moves instead of z: all that the steps need are the updates' inner products.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from strategies.base import Aggregator, Release
from strategies.tree import State
from strategies.users import combined, gram, updates

STEPS, NU, STILL = 1000, 1e-6, 1e-10  # at most so many; nu over the median norm of an update; the change of c that ends them


def geometric_median() -> Aggregator:
    """Build the geometric median. Not linear; its time grows with the square of the number of users."""

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        found = updates(releases, shared)
        return memory, combined(shared, found, weiszfeld(gram(found))) if found else shared

    return Aggregator(lambda _: {}, apply, lambda _: ("lora_A", "lora_B"), linear=False, paper="arXiv 1912.13445", individual=True,
                      pairwise=True)  # fmt: skip


def weiszfeld(gram_KK: Tensor) -> Tensor:
    """The shares [K] of each point in the geometric median of points with these inner products."""
    norm_K = gram_KK.diagonal()
    floor = NU * float(norm_K.sqrt().quantile(0.5)) or 1.0
    share_K = torch.full_like(norm_K, 1 / len(norm_K))
    for _ in range(STEPS):
        along_K = gram_KK @ share_K
        distance_K = (norm_K - 2 * along_K + share_K @ along_K).clamp(min=0).sqrt()
        nearness_K = 1 / distance_K.clamp(min=floor)
        before, share_K = share_K, nearness_K / nearness_K.sum()
        if float((share_K - before).abs().max()) < STILL:
            break
    return share_K

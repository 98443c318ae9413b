"""TIES: of each user's change of the product the largest numbers, of these the ones whose sign prevails, and their mean.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023, arXiv 2306.01708, algorithm 1.

    T_k = B_k A_k - B A, all but its largest ``density`` zero;    S = sign(sum_k p_k T_k);    T = mean of the T_k that are of sign S
    B A <- B A + scale T,    cut back to the rank

On the product, as a sign of a factor's number means nothing. Deviations: the p_k come in; numbers are trimmed in each module by itself.
Forms [d_out, d_in] matrices, one module at a time, and holds all releases.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from strategies.base import Aggregator, Release
from strategies.lora import factored, pairs, signed, trained
from strategies.options import within
from strategies.tree import State, add, weighted_mean


def ties(density: float = 0.2, scale: float = 1.0) -> Aggregator:
    """Build TIES. Not linear."""
    within("density", density, 1e-6, 1)

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        found, modules = [r for r in releases if r.update], pairs(shared)
        after = add(shared, weighted_mean((r.weight, r.update) for r in found))
        for b, a in modules if found else ():
            received_OI = shared[b].double() @ shared[a].double()
            changes = ((r.weight, trained(shared, r, b) @ trained(shared, r, a) - received_OI) for r in found)
            merged_OI = disjoint_mean((weight, trimmed(change_OI, density)) for weight, change_OI in changes)
            u, s, v = torch.linalg.svd(received_OI + scale * merged_OI, full_matrices=False)
            after[b], after[a] = factored(signed(u, s, v), shared[b], shared[a])
        return memory, after

    return Aggregator(lambda _: {}, apply, lambda _: ("lora_A", "lora_B"), linear=False, paper="arXiv 2306.01708",
                      invariant=True, individual=True, hetero_rank=True, paired=True)  # fmt: skip


def trimmed(change: Tensor, density: float) -> Tensor:
    """The largest numbers, so great a share of all; zeros elsewhere."""
    size = change.abs()
    least = size.flatten().kthvalue(size.numel() - math.ceil(density * size.numel()) + 1).values
    return torch.where(size >= least, change, 0.0)


def disjoint_mean(items: Iterable[tuple[float, Tensor]]) -> Tensor:
    """Number by number, the weighted mean of those that are of the sign of the weighted sum; zero where there is none."""
    sums = mass = torch.zeros(())  # [2, ...]: of those above zero, of those below
    for weight, x in items:
        sides = torch.stack([x.clamp(min=0), x.clamp(max=0)])
        sums, mass = sums + weight * sides, mass + weight * (sides != 0)
    above, below = sums / mass.where(mass > 0, 1.0)
    total = sums.sum(0)
    return torch.where(total > 0, above, below) * (total != 0)

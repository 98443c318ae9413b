"""FedSVD: users train B alone; the server writes the mean product anew, so that A turns to where B has gone, with orthonormal rows.

Lee et al., "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA", NeurIPS 2025, arXiv 2505.12805, section 3.

    B <- sum_k p_k B_k,    U S V = B A,    B <- U S,    A <- V,    so that    B A    stays and    A A^T = I

Noise on B alone has no cross term in B A, and orthonormal rows do not amplify it. The decomposition sees the noised sum only.
"""

from collections.abc import Iterable

from strategies.base import Aggregator, Release
from strategies.lora import Product, factored, pairs, svd
from strategies.tree import State, add, weighted_mean


def fedsvd() -> Aggregator:
    """Build FedSVD. Linear and exact; A travels to the nodes only."""
    return Aggregator(lambda _: {}, mean_and_turn, lambda _: ("lora_B",), linear=True, paper="arXiv 2505.12805",
                      exact=True, paired=True, carried=("lora_A",))  # fmt: skip


def mean_and_turn(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
    """FedIT's mean, then the SVD of each product."""
    mean = weighted_mean((r.weight, r.update) for r in releases)
    after = add(shared, mean)
    for b, a in pairs(shared) if mean else ():
        after[b], after[a] = factored(svd(Product(after[b].double(), after[a].double())), shared[b], shared[a])
    return memory, after

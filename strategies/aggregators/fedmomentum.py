"""FedMomentum: the largest directions of the mean product are the next LoRA, so that training goes on in them; the base gets the rest.

Yan et al., "FedMomentum: Preserving LoRA Training Momentum in Federated Fine-Tuning", 2026, arXiv 2603.08014, section 4.

    U S V = sum_k p_k B_k A_k,    B <- U_r S_r,    A <- V_r,    W <- W + s (U S V - U_r S_r V_r)

FlexLoRA that loses nothing. The base stays as it is and the sum of its changes stands beside it (`strategies.lora`). Deviations: the
SVD is not a randomized one, as the product is in factors already; all that is left goes into the base, in every round.
"""

from collections.abc import Iterable

from strategies.aggregators.fedit import both
from strategies.base import Aggregator, Release
from strategies.lora import beside, factored, remade, svd
from strategies.tree import State


def fedmomentum() -> Aggregator:
    """Build FedMomentum. Not linear: a sum of factors does not hold their products. Exact."""
    return Aggregator(lambda _: {}, split, both, linear=False, paper="arXiv 2603.08014", exact=True, invariant=True, individual=True,
                      mutates_base=True, hetero_rank=True, paired=True, carried=("lora_delta",))  # fmt: skip


def split(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
    """Stream the releases into one product a module, and part it; what is no pair of factors is averaged."""
    after, products = remade(shared, releases, lambda b, a, product: factored(svd(product), shared[b], shared[a]))
    return memory, after | beside(shared, after, products)

"""FLoRA: what users have learned is added to the base without loss, and everyone begins anew with a fresh LoRA.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", NeurIPS 2024, arXiv
2409.05976, algorithm 1.

    A = [p_1 A_1; ...; p_K A_K],  B = [B_1, ..., B_K]    so that    B A = sum_k p_k B_k A_k;    W <- W + s B A,    A_k fresh,    B_k = 0

The base stays as it is and the sum of its changes stands beside it (`strategies.lora`). Deviation: users get that sum, a matrix a
module whose size does not grow with them, and not all others' factors. A fresh A is keyed by the A before it, the first of which the
scenario's seed made.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from strategies.aggregators.fedit import both
from strategies.base import Aggregator, Release
from strategies.lora import beside, remade
from strategies.tree import State, generator


def flora() -> Aggregator:
    """Build FLoRA. Not linear: a sum of factors does not hold their products. Exact."""
    return Aggregator(lambda _: {}, stack, both, linear=False, paper="arXiv 2409.05976", exact=True, invariant=True, individual=True,
                      mutates_base=True, hetero_rank=True, paired=True, carried=("lora_delta",))  # fmt: skip


def stack(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
    """Stream the releases into one product a module, which goes into its delta; what is no pair of factors is averaged."""
    after, products = remade(shared, releases, lambda b, a, _: (torch.zeros_like(shared[b]), fresh(shared[a], a)))
    return memory, after | beside(shared, after, products)


def fresh(a_RI: Tensor, name: str) -> Tensor:
    """The next A: uniform as a LoRA's start, the same wherever it is drawn after this one."""
    bound = a_RI.shape[1] ** -0.5
    drawn = torch.empty(a_RI.shape).uniform_(-bound, bound, generator=generator("flora", name, a_RI[0].tolist()))
    return drawn.to(a_RI)

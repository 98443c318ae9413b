"""FlexLoRA: the mean of the products, cut back to the rank of the shared adapter by an SVD.

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources", NeurIPS 2024, arXiv
2402.11505, section 3.

    U S V = sum_k p_k B_k A_k,    B <- U_r S_r,    A <- V_r,    ||sum_k p_k B_k A_k - B A||^2 = sum_{i > r} s_i^2

Here the sum stays in factors (`strategies.lora`): the users' own side by side, never the [d_out, d_in] matrix. Users may have fewer
ranks than the shared adapter, at the same scale alpha / rank.
"""

from collections.abc import Iterable

from strategies.base import Aggregator, Release
from strategies.lora import factored, remade, svd
from strategies.tree import State


def flexlora() -> Aggregator:
    """Build FlexLoRA. Not linear: a sum of factors does not hold their products. Exact where these span no more than the rank."""
    return Aggregator(lambda _: {}, mean_of_products, lambda _: ("lora_A", "lora_B"), linear=False, paper="arXiv 2402.11505",
                      invariant=True, individual=True, hetero_rank=True, paired=True)  # fmt: skip


def mean_of_products(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
    """Stream the releases into one product a module, and decompose it; what is no pair of factors is averaged."""
    return memory, remade(shared, releases, lambda b, a, product: factored(svd(product), shared[b], shared[a]))[0]

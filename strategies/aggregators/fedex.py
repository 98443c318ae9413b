"""FedEx-LoRA: FedIT's means, and what they lack of the mean product is added to the base.

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large Language Models", ACL 2025, arXiv
2410.09432, section 4.

    A <- sum_k p_k A_k,    B <- sum_k p_k B_k,    W <- W + s (sum_k p_k B_k A_k - B A)

The base stays as it is and the sum of its changes stands beside it (`strategies.lora`), [d_out, d_in] as a module's output asks for it:
the paper's published code turns it over, which a square module does not notice.
"""

from collections.abc import Iterable

from strategies.aggregators.fedit import both
from strategies.base import Aggregator, Release
from strategies.lora import beside, mean_products
from strategies.tree import State, add


def fedex() -> Aggregator:
    """Build FedEx-LoRA. Not linear: what the means lack is known only with the users' products. Exact."""
    return Aggregator(lambda _: {}, means_and_residual, both, linear=False, paper="arXiv 2410.09432", exact=True, invariant=True,
                      individual=True, mutates_base=True, paired=True, carried=("lora_delta",))  # fmt: skip


def means_and_residual(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
    """Stream the releases into the means of the factors and one product a module."""
    products, mean = mean_products(shared, releases, dict)
    after = add(shared, mean)
    return memory, after | beside(shared, after, products)

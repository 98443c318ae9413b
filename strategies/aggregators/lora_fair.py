"""LoRA-FAIR: FedIT's means, and a correction of B after which B A comes as near to the mean of the products as A allows.

Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", ICCV 2025, arXiv 2411.14961,
section 4.

    W = sum_k p_k B_k A_k,    D = argmin ||W - (B + D) A||^2 + ridge ||D||^2 = (W - B A) A^T (A A^T + ridge I)^-1,    B <- B + D

with A and B the means. Deviation: least squares in place of the paper's cosine similarity, which has no closed form.
"""

from collections.abc import Iterable

import torch

from strategies.base import Aggregator, Release
from strategies.lora import mean_products
from strategies.options import within
from strategies.tree import State, add


def lora_fair(ridge: float = 0.01) -> Aggregator:
    """Build LoRA-FAIR. Not linear; never further from the mean of the products than FedIT. ``ridge``: beside a squared row of A."""
    within("ridge", ridge, 0, 1e6)

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        products, mean = mean_products(shared, releases, dict)
        after = add(shared, mean)
        for (b, a), (stacked_OR, stacked_RI) in products.items():
            b_OR, a_RI = after[b].double(), after[a].double()
            gram_RR = a_RI @ a_RI.T
            gap_OR = stacked_OR @ (stacked_RI @ a_RI.T) - b_OR @ gram_RR
            correction_RO = torch.linalg.solve(gram_RR + ridge * torch.eye(len(a_RI)).to(gram_RR), gap_OR.T)
            after[b] = (b_OR + correction_RO.T).to(shared[b].dtype)
        return memory, after

    return Aggregator(lambda _: {}, apply, lambda _: ("lora_A", "lora_B"), linear=False, paper="arXiv 2411.14961",
                      individual=True, paired=True)  # fmt: skip

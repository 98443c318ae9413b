"""FRLoRA: the base takes up what the mean of the factors has gained in a round, and the factors go back to their start.

Yan et al., "Federated Residual Low-Rank Adaption of Large Language Models", ICLR 2025, section 3.

    W <- W + s (B A - B_0 A_0)    with    A = sum_k p_k A_k,  B = sum_k p_k B_k;    then    A <- A_0,  B <- B_0

Over rounds the change has any rank, and users who begin in one place drift apart less. Biased within a round as FedIT is. The base
stays as it is and the sum of its changes stands beside it (`strategies.lora`).

Deviation: A_0 is the LoRA's own start and B_0 is drawn like it, where the paper takes the largest singular vectors of W out of the
base. The first round begins with B = 0. B_0 = 0 would not do: A then hardly moves before it is reset, and no round leaves A_0's rows.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from strategies.aggregators.fedit import both
from strategies.base import Aggregator, Release
from strategies.lora import Product, beside, pairs
from strategies.tree import State, add, generator, weighted_mean


def frlora() -> Aggregator:
    """Build FRLoRA. Linear."""
    return Aggregator(lambda _: {}, gain_and_reset, both, linear=True, paper="ICLR 2025", mutates_base=True, paired=True,
                      carried=("lora_delta",))  # fmt: skip


def gain_and_reset(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
    """FedIT's mean, the product of which moves into the delta. As every round ends so, the A that users receive is the start."""
    if not (mean := weighted_mean((r.weight, r.update) for r in releases)):
        return memory, shared
    trained = add(shared, mean)
    products = {(b, a): Product(trained[b].double(), trained[a].double()) for b, a in pairs(shared)}
    after = trained | {a: shared[a] for _, a in products} | {b: start(b, shared[b]) for b, _ in products}
    return memory, after | beside(shared, after, products)


def start(name: str, like: Tensor) -> Tensor:
    """B_0 [O, R]: uniform like A's start, by the module's name alone."""
    bound = like.shape[0] ** -0.5
    return torch.empty(like.shape).uniform_(-bound, bound, generator=generator("frlora", name)).to(like)

"""FRLoRA: the base takes up what the mean of the factors has gained in a round, and the factors go back to their start.

Yan et al., "Federated Residual Low-Rank Adaption of Large Language Models", ICLR 2025, section 3.

    W <- W + s (B A - B_0 A_0)    with    A = sum_k p_k A_k,  B = sum_k p_k B_k;    then    A <- A_0,  B <- B_0

Over rounds the change has any rank, and users who begin in one place drift apart less. Biased within a round as FedIT is. The base
stays as it is and the sum of its changes stands beside it (`strategies.lora`). Deviation: B_0 and A_0 are the LoRA's own start, zero
and random, where the paper takes the largest singular vectors of W out of the base.
"""

from collections.abc import Iterable

from strategies.aggregators.fedit import both
from strategies.base import Aggregator, Release
from strategies.lora import Product, beside, pairs
from strategies.tree import State, add, weighted_mean


def frlora() -> Aggregator:
    """Build FRLoRA. Linear. Its memory is the factors' start."""
    return Aggregator(factors_of, gain_and_reset, both, linear=True, paper="ICLR 2025", mutates_base=True, paired=True,
                      carried=("lora_delta",), stateful=True)  # fmt: skip


def factors_of(shared: State) -> State:
    """A copy of every pair of factors."""
    return {name: shared[name].clone() for pair in pairs(shared) for name in pair}


def gain_and_reset(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
    """FedIT's mean, the product of which moves into the delta; without a release all stays where it is."""
    mean = weighted_mean((r.weight, r.update) for r in releases)
    if not mean:
        return memory, shared
    trained = add(shared, mean)
    products = {(b, a): Product(trained[b].double(), trained[a].double()) for b, a in pairs(shared)}
    return memory, {**trained, **memory} | beside(shared, memory, products)

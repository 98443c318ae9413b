"""FedIT: the weighted mean of both LoRA factors.

Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", arXiv 2305.05644, algorithm 1.

    A <- sum_k p_k A_k,    B <- sum_k p_k B_k,    p_k = n_k / sum n_k

Biased as a product: sum_k p_k B_k A_k - B A = sum_k p_k (B_k - B)(A_k - A).
"""

from collections.abc import Iterable

from strategies.base import Aggregator, Release
from strategies.tree import State, add, weighted_mean


def fedit() -> Aggregator:
    """Build FedIT. Linear; not exact unless all A or all B agree."""
    return Aggregator(lambda _: {}, mean_of_updates, both, linear=True, paper="arXiv 2305.05644")


def both(_number: int) -> tuple[str, ...]:
    """Both factors, in every round."""
    return ("lora_A", "lora_B")


def mean_of_updates(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
    """Move the shared adapter by the weighted mean of the updates; without a release it stays where it is."""
    return memory, add(shared, weighted_mean((r.weight, r.update) for r in releases))

"""Task arithmetic: users' updates are vectors that add up.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089, section 2; on both LoRA factors.

    x <- x + lambda sum_k (x_k - x),    lambda = scale / K    for K users of one weight

``scale`` 1 is FedIT, more goes beyond the mean as the paper does, below 0 forgets. With weights, p_k stands for 1 / K.
"""

from collections.abc import Iterable

from strategies.base import Aggregator, Release
from strategies.tree import State, add, weighted_mean


def task_arithmetic(scale: float = 1.0) -> Aggregator:
    """Build task arithmetic. Linear."""

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        return memory, add(shared, weighted_mean((r.weight, r.update) for r in releases), scale)

    return Aggregator(lambda _: {}, apply, lambda _: ("lora_A", "lora_B"), linear=True, paper="arXiv 2212.04089")

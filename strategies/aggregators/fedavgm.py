"""FedAvgM: FedIT's mean update, carried on by a server momentum. What all users agree on adds up over rounds; drift cancels.

Hsu, Qi & Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
arXiv 1909.06335, section 3; on both LoRA factors.

    m <- beta m + sum_k p_k (x_k - x),    x <- x + eta m
"""

from collections.abc import Iterable

import torch

from strategies.base import Aggregator, Release
from strategies.tree import State, add, weighted_mean


def fedavgm(momentum: float = 0.9, lr: float = 1.0) -> Aggregator:
    """Build FedAvgM. Linear; ``momentum`` 0 and ``lr`` 1 is FedIT."""

    def init(shared: State) -> State:
        return {name: torch.zeros_like(value) for name, value in shared.items()}

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        update = weighted_mean((r.weight, r.update) for r in releases)
        if not update:
            return memory, shared
        memory = {name: momentum * m + update.get(name, 0.0) for name, m in memory.items()}
        return memory, add(shared, memory, lr)

    return Aggregator(init, apply, lambda _: ("lora_A", "lora_B"), linear=True, stateful=True, paper="arXiv 1909.06335")

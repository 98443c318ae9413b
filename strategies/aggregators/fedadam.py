"""FedAdam: the mean update is a gradient for Adam on the server. Many short rounds then train as one optimizer would in one place.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2; on both LoRA factors.

    d = sum_k p_k (x_k - x),    m <- b1 m + (1 - b1) d,    v <- b2 v + (1 - b2) d^2,    x <- x + eta m / (sqrt(v) + tau)

As in the paper there is no correction of the bias of m and v. Here v starts at zero, in the paper at tau^2 or more.
"""

from collections.abc import Iterable

import torch

from strategies.base import Aggregator, Release
from strategies.tree import State, weighted_mean


def fedadam(lr: float = 1e-2, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Aggregator:
    """Build FedAdam. Linear; ``tau`` has the size of an update below which a number counts as still."""

    def init(shared: State) -> State:
        return {f"{moment}/{name}": torch.zeros_like(value) for moment in "mv" for name, value in shared.items()}

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        update = weighted_mean((r.weight, r.update) for r in releases)
        memory, shared = dict(memory), dict(shared)
        for name, d in update.items():
            m = memory[f"m/{name}"] = beta1 * memory[f"m/{name}"] + (1 - beta1) * d
            v = memory[f"v/{name}"] = beta2 * memory[f"v/{name}"] + (1 - beta2) * d.square()
            shared[name] = shared[name] + lr * m / (v.sqrt() + tau)
        return memory, shared

    return Aggregator(init, apply, lambda _: ("lora_A", "lora_B"), linear=True, stateful=True, paper="arXiv 2003.00295")

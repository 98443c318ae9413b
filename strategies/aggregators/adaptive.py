"""What FedAdam, FedYogi and FedAdagrad have in common: the mean update is a gradient for an optimizer on the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2; on both LoRA factors.

    d = sum_k p_k (x_k - x),    m <- b1 m + (1 - b1) d,    v <- second(v, d^2),    x <- x + eta m / (sqrt(v) + tau)

As in the paper there is no correction of the bias of m and v. Here v starts at zero, in the paper at tau^2 or more.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from strategies.base import Aggregator, Release
from strategies.tree import State, weighted_mean

Second = Callable[[Tensor, Tensor], Tensor]  # (v, d^2) -> v


def adaptive(second: Second, lr: float, beta1: float, tau: float) -> Aggregator:
    """Build the aggregator of a second moment. Linear; ``tau`` has the size of an update below which a number counts as still."""

    def init(shared: State) -> State:
        return {f"{moment}/{name}": torch.zeros_like(value) for moment in "mv" for name, value in shared.items()}

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        update = weighted_mean((r.weight, r.update) for r in releases)
        memory, shared = dict(memory), dict(shared)
        for name, d in update.items():
            m = memory[f"m/{name}"] = beta1 * memory[f"m/{name}"] + (1 - beta1) * d
            v = memory[f"v/{name}"] = second(memory[f"v/{name}"], d.square())
            shared[name] = shared[name] + lr * m / (v.sqrt() + tau)
        return memory, shared

    return Aggregator(init, apply, lambda _: ("lora_A", "lora_B"), linear=True, stateful=True, paper="arXiv 2003.00295")

"""FedYogi: FedAdam whose second moment grows and shrinks by the size of the update alone, so that it forgets slowly.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2; the rest is in `adaptive`.

    v <- v - (1 - b2) d^2 sign(v - d^2)
"""

from strategies.aggregators.adaptive import adaptive
from strategies.base import Aggregator


def fedyogi(lr: float = 1e-2, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Aggregator:
    """Build FedYogi."""
    return adaptive(lambda v, square: v - (1 - beta2) * square * (v - square).sign(), lr, beta1, tau)

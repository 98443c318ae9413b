"""FedAdam: the mean update is a gradient for Adam on the server. Many short rounds then train as one optimizer would in one place.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2; the rest is in `adaptive`.

    v <- b2 v + (1 - b2) d^2
"""

from strategies.aggregators.adaptive import adaptive
from strategies.base import Aggregator


def fedadam(lr: float = 1e-2, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Aggregator:
    """Build FedAdam."""
    return adaptive(lambda v, square: beta2 * v + (1 - beta2) * square, lr, beta1, tau)

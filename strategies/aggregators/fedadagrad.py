"""FedAdagrad: the second moment is the sum over all rounds, so that steps become shorter and shorter.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2; the rest is in `adaptive`.

    v <- v + d^2
"""

from strategies.aggregators.adaptive import adaptive
from strategies.base import Aggregator


def fedadagrad(lr: float = 1e-2, beta1: float = 0.0, tau: float = 1e-3) -> Aggregator:
    """Build FedAdagrad."""
    return adaptive(lambda v, square: v + square, lr, beta1, tau)

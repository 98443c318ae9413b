"""FedProx: users are pulled back to what they received while they train; then FedIT's mean.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv 1812.06127, algorithm 2; on both LoRA factors.

    min f_k(x) + mu/2 ||x - x_t||^2  at user k,    x_{t+1} = sum_k p_k x_k

The pull acts on all that trains in a phase that moves what is shared. With sgd it is part of the gradient; with adamw it is decoupled,
as that optimizer's own decay is.
"""

from strategies.aggregators.fedit import fedit
from strategies.base import Aggregator
from strategies.options import within


def fedprox(mu: float = 0.01) -> Aggregator:
    """Build FedProx. Linear; ``mu`` 0 is FedIT."""
    return fedit()._replace(paper="arXiv 1812.06127", pull=within("mu", mu, 0, 1e6))

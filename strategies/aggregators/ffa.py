"""FFA-LoRA: A is frozen at its common random start; only B is trained, sent and averaged.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv 2403.12313, section 4.

    B <- sum_k p_k B_k,    so that    sum_k p_k B_k A = B A    exactly.
"""

from strategies.aggregators.fedit import mean_of_updates
from strategies.base import Aggregator


def ffa() -> Aggregator:
    """Build FFA-LoRA. Linear and exact; half the bytes of FedIT where d_in = d_out."""
    return Aggregator(lambda _: {}, mean_of_updates, lambda _: ("lora_B",), linear=True, exact=True, paper="arXiv 2403.12313")

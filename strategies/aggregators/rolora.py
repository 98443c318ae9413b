"""RoLoRA: the factors take turns: B is trained and averaged in odd rounds, A in even ones. The other one stays as the server has it.

Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", arXiv 2502.01755, algorithm 1.

    odd:  B <- sum_k p_k B_k,    so that    sum_k p_k B_k A = B A    exactly;    even:  A <- sum_k p_k A_k

B begins, as it starts at zero and A has no gradient until it has moved.
"""

from strategies.aggregators.fedit import mean_of_updates
from strategies.base import Aggregator


def rolora() -> Aggregator:
    """Build RoLoRA. Linear and exact."""
    return Aggregator(lambda _: {}, mean_of_updates, turn, linear=True, paper="arXiv 2502.01755", exact=True, paired=True)


def turn(number: int) -> tuple[str, ...]:
    """The factor of a round, counted from 1."""
    return ("lora_B",) if number % 2 else ("lora_A",)

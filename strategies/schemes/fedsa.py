"""FedSA-LoRA: factor A of every LoRA is shared, factor B is private; both train together.

Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025, arXiv 2410.01463, eq. 5.
A new user starts from B = 0, so that the model is the base until they train.
"""

from strategies.base import Phase, Scheme


def fedsa() -> Scheme:
    """A is shared, B is private."""
    return Scheme(
        ("shared",),
        lambda _block, name: "shared" if ".lora_A." in name else "private",
        (Phase("shared", ("shared", "private")),),
        "arXiv 2410.01463",
    )

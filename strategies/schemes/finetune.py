"""Fine-tuned: one adapter for everyone, and after the last round each user's own copy of it trains on.

Wang et al., "Federated Evaluation of On-device Personalization", 2019, arXiv 1910.10252; with LoRA.
"""

from strategies.base import Phase, Scheme
from strategies.schemes.copies import copied, only_shared


def finetune() -> Scheme:
    """A user's model is the copy alone; before it trains it is the shared adapter."""
    return Scheme(
        ("shared", "private"),
        only_shared,
        (Phase("shared", ("shared",), applies=("shared",)),),
        "arXiv 1910.10252",
        Phase("private", ("private",), applies=("private",), begin=copied),
        twins=("private",),
    )

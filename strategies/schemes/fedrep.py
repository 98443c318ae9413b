"""FedRep: users fit a small head of their own on a representation that all learn together; here both sit in the private adapter.

Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", ICML 2021, arXiv 2102.07078, algorithm 1:
first the head, then the representation with the head as it is. The head is the private adapter's `lora_B` or `core`; its
representation, `lora_A` or `mix`, is shared, and so is the whole shared adapter.

Deviation: the two steps see different examples, and the head is fitted from its start, as in Fallah et al., "Personalized Federated
Learning with Theoretical Guarantees", NeurIPS 2020, arXiv 2002.07948, algorithm 1. A representation that is judged on the examples
which the head has seen learns to help heads to overfit. The head has the earlier ones and the representation the later ones, parted
at a moment that is drawn anew each round: that is how a head will be used, and tastes drift.
"""

from strategies.base import Owner, Phase, Scheme


def fedrep() -> Scheme:
    """Heads are private; the shared adapter and the heads' representation are shared. The last phase fits heads on all examples."""
    return Scheme(
        ("shared", "private"),
        _owner,
        (Phase("private", ("private",), "support", fresh=True), Phase("shared", ("shared",), "query")),
        "arXiv 2102.07078",
        Phase("private", ("private",), fresh=True),
    )


def _owner(block: str, name: str) -> Owner:
    return "shared" if block == "shared" or ".lora_A." in name or ".mix." in name else "private"

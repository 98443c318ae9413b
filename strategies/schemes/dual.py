"""Dual: a shared and a private adapter, added, trained in turns; the gradient flows through both.

Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024, arXiv 2403.19211 (FedDPA-T),
with an additive mix of weight one. Deviation from its published code: the frozen branch is never detached.
"""

from strategies.base import Phase, Scheme


def dual() -> Scheme:
    """The shared adapter trains with the private one applied, then the private one with the shared one applied."""
    return Scheme(
        ("shared", "private"),
        lambda block, _name: "shared" if block == "shared" else "private",
        (Phase("shared", ("shared",)), Phase("private", ("private",))),
        "arXiv 2403.19211",
    )

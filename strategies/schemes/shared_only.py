"""Shared-only: one adapter for everyone, nothing private. McMahan et al. 2017 with LoRA (arXiv 2305.05644)."""

from strategies.base import Phase, Scheme


def shared_only() -> Scheme:
    """Every tensor is shared."""
    return Scheme(("shared",), lambda _block, _name: "shared", (Phase("shared", ("shared",)),), "arXiv 2305.05644")

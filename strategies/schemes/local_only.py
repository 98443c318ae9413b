"""Local-only: every user trains alone; nothing is released. The control that federation must beat."""

from strategies.base import Phase, Scheme


def local_only() -> Scheme:
    """Every tensor is private."""
    return Scheme(("private",), lambda _block, _name: "private", (Phase("private", ("private",)),), "control")

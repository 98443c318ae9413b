"""Sequential: the private adapter trains on, and nothing is done about what it forgets.

McCloskey & Cohen, "Catastrophic Interference in Connectionist Networks", 1989. The baseline that every other is held against.
"""

from strategies.keeping.contract import Keeping


def sequential() -> Keeping:
    """Train on."""
    return Keeping("McCloskey & Cohen 1989")

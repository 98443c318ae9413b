"""FedPer: layers of a user's own and layers of everyone, trained together; here the private and the shared adapter.

Arivazhagan et al., "Federated Learning with Personalization Layers", 2019, arXiv 1912.00818, algorithm 1. Which layers are whose is
said by `shared.layers`, `private.layers` and targets; both may lie on the same modules.
"""

from strategies.base import Phase, Scheme
from strategies.schemes.copies import only_shared


def fedper() -> Scheme:
    """Both adapters take every step together, by the settings of the shared one's training."""
    both = Phase("shared", ("shared", "private"))
    return Scheme(("shared", "private"), only_shared, (both,), "arXiv 1912.00818", needs=(("private_from", 0),))

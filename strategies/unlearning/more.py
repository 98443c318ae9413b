"""Approximate: the others train on from where the run has come to, a few rounds without the forgotten.

What a user has added to the shared adapter is written over, and never taken out. It is the recovery phase of Halimi et al., "Federated
Unlearning: How to Efficiently Erase a Client in FL?", arXiv 2207.05521, section 3, without the gradient ascent before it, and the
baseline that papers on federated unlearning measure against.

Deviation, on purpose: what takes single contributions out, or calibrates them anew (Liu et al., "FedEraser", IWQoS 2021, arXiv
2012.13891), has the server keep every user's update of every round. This server keeps none after its round.
"""

from configs.errors import InputError
from strategies.unlearning.contract import Way


def more(rounds: float = 5) -> Way:
    """So many rounds more. Raises `InputError` unless that is a count."""
    if rounds < 1 or rounds != int(rounds):
        raise InputError(f"--option rounds must be a whole number, 1 or more, got {rounds:g}; --with leave trains no round")
    return Way("arXiv 2207.05521", exact=False, keeps=True, rounds=int(rounds))

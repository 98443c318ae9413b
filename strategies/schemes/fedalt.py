"""FedALT: a user's adapter learns beside the mean of all others', which it does not change.

Bian et al., "FedALT: Federated Fine-Tuning through Adaptive Local Training with Rest-of-World LoRA", 2025, arXiv 2503.11880.
All users send their adapter theta_k, and the server its mean w. A user takes the own one out again, so that one broadcast does for all:

    rest_k = (K w - theta_k) / (K - 1)

Deviation: one learnt gate per user weighs the two, sigmoid(g) theta_k + (1 - sigmoid(g)) rest_k; the paper has a router per module.
"""

import torch

from strategies.base import Owner, Phase, Scheme, Task
from strategies.schemes.copies import of, put, scaled, sent
from strategies.tree import State


def fedalt() -> Scheme:
    """The rest is frozen; a user's adapter is sent, and so is no secret."""
    own = Phase("private", ("private",), applies=("private", "rest"), view=_gated)
    return Scheme(
        ("shared", "private", "rest"),
        _owner,
        (own._replace(name="shared", begin=_rest_of_world, end=sent),),
        "arXiv 2503.11880",
        own,
        twins=("private", "rest"),
        own=(("gate", 0.0),),
        needs=(("private_from", 0), ("users_per_round", 0), ("weights", "uniform"), ("aggregator", "fedit")),
    )


def _owner(block: str, _name: str) -> Owner:
    return "shared" if block == "shared" else "frozen" if block == "rest" else "private"


def _rest_of_world(state: State, task: Task) -> State:
    """``private`` is what the user sent last; before that, what everyone began with."""
    own, users = of(state, "private"), task.cohort
    if users < 2:
        return put(state, "rest", of(state, "shared"))
    return put(state, "rest", {name: (users * mean - own[name]) / (users - 1) for name, mean in of(state, "shared").items()})


def _gated(state: State) -> State:
    share = torch.sigmoid(state["private/gate"])
    return scaled(scaled(state, "private", share), "rest", 1 - share)

"""APFL: a user's model is a mixture of the shared adapter w and one of their own v, and the share is learnt.

Deng et al., "Adaptive Personalized Federated Learning", 2020, arXiv 2003.13461, section 3.2 and eq. 11:

    v' = alpha v + (1 - alpha) w,    v <- v - eta grad_v f_k(v'),    alpha <- alpha - eta <v - w, grad f_k(v')>

Parameters are mixed, not outputs: for LoRA that is no mixture of products. Deviation: alpha is the sigmoid of the number that is kept.
"""

import torch

from strategies.base import Phase, Scheme
from strategies.options import within
from strategies.schemes.copies import logit, mixed, of, only_shared, put
from strategies.tree import State


def apfl(share: float = 0.5) -> Scheme:
    """``share``: where alpha begins. At 0 it stays there and a user has the shared adapter, at 1 they learn alone."""
    own = Phase("private", ("private",), applies=("private",), view=_mixture)
    return Scheme(
        ("shared", "private"),
        only_shared,
        (Phase("shared", ("shared",), applies=("shared",)), own),
        "arXiv 2003.13461",
        own,
        twins=("private",),
        own=(("share", logit(within("share", share, 0.0, 1.0, "scheme_options"))),),
    )


def _mixture(state: State) -> State:
    share = torch.sigmoid(state["private/share"])
    return put(state, "private", mixed(share, of(state, "private"), of(state, "shared")))

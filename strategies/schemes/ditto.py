"""Ditto: beside the shared adapter w every user has a whole one of their own, held near it.

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, arXiv 2012.04221, algorithm 1:

    v_k <- v_k - eta ( grad f_k(v_k) + lambda (v_k - w_t) ),    w_t as received

and w is trained as without v. The step is a proximal one: theta <- (theta - eta grad + eta lambda w) / (1 + eta lambda).
"""

from strategies.base import Phase, Scheme
from strategies.schemes.copies import only_shared


def ditto(pull: float = 0.1) -> Scheme:
    """``pull``: lambda. 0: a user's own adapter learns alone; the larger, the nearer it stays to the shared one."""
    own = Phase("private", ("private",), applies=("private",), pull=pull)
    shared = Phase("shared", ("shared",), applies=("shared",))
    return Scheme(("shared", "private"), only_shared, (own, shared), "arXiv 2012.04221", own, twins=("private",))

"""MR-MTL: every user keeps one model of their own, pulled to the mean of all, and sends that model.

Liu et al., "On Privacy and Personalization in Cross-Silo Federated Learning", NeurIPS 2022, arXiv 2206.07902, eq. 3:

    min over theta_k of  f_k(theta_k) + lambda / 2 |theta_k - w|^2,    w = sum_k p_k theta_k

A user's model never begins anew; who comes later begins at the mean of then.
"""

from strategies.base import Phase, Scheme
from strategies.schemes.copies import only_shared, sent


def mr_mtl(pull: float = 0.1) -> Scheme:
    """``pull``: lambda. 0: users learn alone; the larger, the more they are one."""
    return Scheme(
        ("shared", "private"),
        only_shared,
        (Phase("shared", ("private",), applies=("private",), end=sent, pull=pull),),
        "arXiv 2206.07902",
        Phase("private", ("private",), applies=("private",), pull=pull),
        twins=("private",),
        needs=(("private_from", 0),),
    )

"""pFedMe: a user's model is the proximal point of their loss at the shared one, which follows the users' models.

Dinh et al., "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, arXiv 2006.08848, algorithm 1:

    theta_k ~ argmin f_k(theta) + lambda / 2 |theta - w|^2,    w_k = w - eta lambda (w - theta_k)

with one local round (R = 1), so that `shared_training` is the inner problem's. Its beta is a server's learning rate: fedavgm has one.
"""

from strategies.base import Phase, Scheme
from strategies.options import within
from strategies.schemes.copies import copied, mixed, of, only_shared, put
from strategies.tree import State


def pfedme(pull: float = 1.0, rate: float = 0.5) -> Scheme:
    """``pull``: lambda. ``rate``: eta lambda, 0 to 1, how far the shared adapter follows."""
    share = within("rate", rate, 0.0, 1.0, "scheme_options")

    def follow(_before: State, after: State) -> State:
        return put(after, "shared", mixed(share, of(after, "private"), of(after, "shared")))

    return Scheme(
        ("shared", "private"),
        only_shared,
        (Phase("shared", ("private",), applies=("private",), begin=copied, end=follow, pull=pull),),
        "arXiv 2006.08848",
        Phase("private", ("private",), applies=("private",), begin=copied, pull=pull),
        twins=("private",),
        needs=(("private_from", 0),),
    )

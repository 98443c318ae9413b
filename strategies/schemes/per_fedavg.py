"""Per-FedAvg (first order): the shared adapter is a start from which a user's first steps get far.

Fallah et al., "Personalized Federated Learning with Theoretical Guarantees", NeurIPS 2020, arXiv 2002.07948, algorithm 1 with the
gradient of eq. 8 without its Hessian:

    theta_k = w - alpha grad f_k(w; D),    w_k = w - beta grad f_k(theta_k; D')

D are a user's earlier examples, with `private_training` (alpha, one epoch in one batch is one step), D' the later ones, with
`shared_training` (beta). Exact where that is one step; further steps do not adapt anew, as in Reptile.
"""

from strategies.base import Phase, Scheme
from strategies.schemes.copies import copied, of, only_shared, put
from strategies.tree import State, add, subtract


def per_fedavg() -> Scheme:
    """After the last round users take their first steps on all of their examples."""
    return Scheme(
        ("shared", "private"),
        only_shared,
        (
            Phase("private", ("private",), "support", applies=("private",), begin=copied),
            Phase("shared", ("private",), "query", applies=("private",), end=_step_of_the_start),
        ),
        "arXiv 2002.07948",
        Phase("private", ("private",), applies=("private",), begin=copied),
        twins=("private",),
        needs=(("private_from", 0),),
    )


def _step_of_the_start(before: State, after: State) -> State:
    step = subtract(of(after, "private"), of(before, "private"))
    return put(after, "shared", add(of(after, "shared"), step))

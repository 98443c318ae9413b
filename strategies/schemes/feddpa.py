"""FedDPA: a global and a local adapter whose outputs are weighed anew for each text.

Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024, arXiv 2403.19211, sections 4.2 and 4.3:

    y = W x + (1 - a) D_shared x + a D_private x,    a = weight * max(0, mean cosine of the text with five of the user's own)

-T trains both in turns, each with weight 1/2. -F trains the shared one first and then, from a copy of it, the private one alone.

Deviations: the frozen branch passes gradients, which the published code cuts off; and the more a text is like the user's own, the
more the *private* adapter counts, where that code gives the similarity to the global one.
"""

from torch import Tensor

from strategies.base import Phase, Scheme
from strategies.options import within
from strategies.schemes.copies import SIMILARITY, copied, only_shared, scaled
from strategies.tree import State

REFERENCES = 5


def feddpa_t(weight: float = 0.5) -> Scheme:
    """``weight``: of the private adapter, at most, when a text is scored."""
    most = _checked(weight)

    def view(state: State) -> State:
        return _weighed(state, _share(state, most, 0.5))

    return Scheme(
        ("shared", "private"),
        only_shared,
        (Phase("shared", ("shared",), view=view), Phase("private", ("private",), view=view)),
        "arXiv 2403.19211",
        Phase("private", ("private",), view=view),
        references=REFERENCES,
    )


def feddpa_f(weight: float = 0.5) -> Scheme:
    """``weight``: of the private adapter, at most, when a text is scored."""
    most = _checked(weight)
    return Scheme(
        ("shared", "private"),
        only_shared,
        (Phase("shared", ("shared",), applies=("shared",)),),
        "arXiv 2403.19211",
        Phase("private", ("private",), begin=copied, view=lambda state: _weighed(state, _share(state, most, 1.0))),
        twins=("private",),
        references=REFERENCES,
    )


def _checked(weight: float) -> float:
    return within("weight", weight, 0.0, 1.0, "scheme_options")


def _share(state: State, most: float, trained: float) -> float | Tensor:
    """The private adapter's share; in training, where there is no text to compare, a fixed one."""
    return most * state[SIMILARITY].clamp(min=0) if SIMILARITY in state else trained


def _weighed(state: State, share: float | Tensor) -> State:
    return scaled(scaled(state, "shared", 1 - share), "private", share)

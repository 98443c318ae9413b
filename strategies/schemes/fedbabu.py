"""FedBABU: the body is learnt by all under a head that nobody trains; then each user trains both.

Oh et al., "FedBABU: Toward Enhanced Representation for Federated Image Classification", ICLR 2022, arXiv 2106.06042, algorithm 1.
The shared adapter is the body. The head is the private adapter, which in the rounds is at its start, the frozen model's own layers.
After the rounds it is tuned together with a copy of the body.
"""

from strategies.base import Phase, Scheme, Task
from strategies.schemes.copies import of, only_shared, put
from strategies.tree import State


def fedbabu() -> Scheme:
    """A user's model is their head and their copy of the body."""
    return Scheme(
        ("shared", "private", "rest"),
        only_shared,
        (Phase("shared", ("shared",), applies=("shared",)),),
        "arXiv 2106.06042",
        Phase("private", ("private",), applies=("private", "rest"), begin=_body),
        twins=("rest",),
    )


def _body(state: State, _task: Task) -> State:
    return put(state, "rest", of(state, "shared"))

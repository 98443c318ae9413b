"""What schemes do with a user's tensors: copies of the shared adapter, mixtures, weights. Pure functions on "block/name" -> tensor.

In a view, tensors have one or two axes in front, of users and of their units; a weight is a number, or has these axes and one of 1.
"""

import torch
from torch import Tensor

from strategies.base import Owner, Task
from strategies.tree import State

SIMILARITY = "similarity"  # of a text with a user's own, beside the tensors of a view: [..., 1] in -1..1
OUTER = (".lora_B.", ".core.")  # what an adapter's effect is linear in


def only_shared(block: str, _name: str) -> Owner:
    """The shared adapter is everybody's, all else the user's own."""
    return "shared" if block == "shared" else "private"


def of(state: State, block: str) -> State:
    """One adapter's tensors by their names."""
    return {key.removeprefix(f"{block}/"): value for key, value in state.items() if key.startswith(f"{block}/")}


def put(state: State, block: str, values: State) -> State:
    """The state with other tensors in an adapter's place."""
    return state | {f"{block}/{name}": value for name, value in values.items()}


def copied(state: State, _task: Task) -> State:
    """The private adapter begins as a copy of the shared one."""
    return put(state, "private", of(state, "shared"))


def sent(_before: State, after: State) -> State:
    """The private adapter is what is sent in the shared one's place: its numbers of now, whatever becomes of the private one."""
    own = of(after, "private")
    return put(after, "shared", {name: own[name].clone() for name in of(after, "shared")})


def mixed(weight: float | Tensor, one: State, other: State) -> State:
    """``weight * one + (1 - weight) * other``, over the names of the latter."""
    return {name: _over(weight, value) * one[name] + (1 - _over(weight, value)) * value for name, value in other.items()}


def scaled(state: State, block: str, weight: float | Tensor) -> State:
    """An adapter whose effect on the model is ``weight`` times as large."""
    own = of(state, block)
    return put(state, block, {n: v * _over(weight, v) for n, v in own.items() if any(part in n for part in OUTER)})


def _over(weight: float | Tensor, value: Tensor) -> float | Tensor:
    """A weight [..., 1] with as many axes behind as the value has."""
    if not isinstance(weight, Tensor):
        return weight
    return weight.reshape(*weight.shape, *[1] * (value.dim() - weight.dim()))


def logit(share: float) -> float:
    """The number whose sigmoid is a share of 0 to 1."""
    return float(torch.logit(torch.tensor(share, dtype=torch.float64)))

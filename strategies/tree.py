"""States: flat dictionaries of tensors under PEFT's own names, and the few operations on them.

A stacked state has a leading user axis C on every tensor.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def partition(state: State, keep: Callable[[str], bool]) -> tuple[State, State]:
    """Split a state by name: those that ``keep`` accepts, and the rest."""
    kept = {name: value for name, value in state.items() if keep(name)}
    return kept, {name: value for name, value in state.items() if name not in kept}


def stack(states: Sequence[State]) -> State:
    """Stack equal-shaped states along a new leading user axis."""
    return {name: torch.stack([s[name] for s in states]) for name in states[0]}


def take(stacked: State, index: int) -> State:
    """One user's state out of a stacked one, as a copy."""
    return {name: value[index].clone() for name, value in stacked.items()}


def lead(state: State) -> State:
    """Give every tensor a leading axis of one: a state that all users of a pass have in common."""
    return {name: value.unsqueeze(0) for name, value in state.items()}


def subtract(a: State, b: State) -> State:
    """``a - b``, name by name over the names of ``a``."""
    return {name: value - b[name] for name, value in a.items()}


def add(a: State, b: State, scale: float = 1.0) -> State:
    """``a + scale * b``; names that ``b`` lacks stay as they are."""
    return {name: value + scale * b[name].to(value.dtype) if name in b else value for name, value in a.items()}


def norm(state: State) -> float:
    """L2 norm over the jointly flattened state, summed in float64, whatever the order of the tensors."""
    return math.fsum(float(value.double().square().sum()) for value in state.values()) ** 0.5


def nbytes(state: State) -> int:
    """Bytes that the tensors hold."""
    return sum(value.numel() * value.element_size() for value in state.values())


def weighted_mean(items: Iterable[tuple[float, State]]) -> State:
    """``sum(w_k x_k) / sum(w_k)``, streamed in float64, so that order and grouping change nothing that float32 shows.

    Each item is a weight and a state that is *already multiplied* by it. Returns {} when the weights add up to zero.
    """
    total, mass = {}, 0.0
    for weight, state in items:
        mass += weight
        for name, value in state.items():
            total[name] = total[name] + value.double() if name in total else value.double()
    return {name: (value / mass).float() for name, value in total.items()} if mass > 0 else {}


def generator(*key: object) -> torch.Generator:
    """A CPU generator keyed by (seed, round, user, purpose): never by Python's salted ``hash``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

"""Single users' updates, each flattened jointly over all its tensors: what robust aggregators look at.

They count users, not examples: a weight is what a user says of itself. K: users.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from strategies.base import Release
from strategies.tree import State, add, norm


def updates(releases: Iterable[Release], shared: State) -> list[State]:
    """What each user would add to the shared adapter, float64; a tensor that is not sent is a zero. All are held at one time."""
    found = [r for r in releases if r.update]
    names = [name for name in shared if any(name in r.update for r in found)]
    nothing = {name: torch.zeros_like(shared[name], dtype=torch.float64) for name in names}
    return [nothing | {name: value.double() / r.weight for name, value in r.update.items()} for r in found]


def gram(found: list[State]) -> Tensor:
    """Inner products of users' updates [K, K]. O(K^2 P) for P numbers."""
    total_KK = torch.zeros(len(found), len(found), dtype=torch.float64)
    for name in found[0]:
        x_KD = torch.stack([state[name].flatten() for state in found])
        total_KK += (x_KD @ x_KD.T).cpu()
    return total_KK


def norms(found: list[State]) -> Tensor:
    """The L2 norm of each user's update [K]."""
    return torch.tensor([norm(state) for state in found], dtype=torch.float64)


def toward(one: State, found: list[State]) -> tuple[Tensor, Tensor, float]:
    """Of each user the inner product with ``one`` [K] and the norm [K], and the norm of ``one``."""
    along_K = torch.tensor([math.fsum(float((one[n] * x).sum()) for n, x in state.items()) for state in found], dtype=torch.float64)
    return along_K, norms(found), norm(one)


def squared_distances(gram_KK: Tensor) -> Tensor:
    """Between users' updates [K, K]."""
    norm_K = gram_KK.diagonal()
    return (norm_K[:, None] + norm_K - 2 * gram_KK).clamp(min=0)


def combined(shared: State, found: list[State], share_K: Tensor) -> State:
    """The shared adapter moved by sum_k c_k x_k."""
    moves = [(c, x) for c, x in zip(share_K.tolist(), found, strict=True) if c]
    return add(shared, {name: sum((c * x[name] for c, x in moves), torch.zeros(())) for name in moves[0][1]} if moves else {})


def numberwise(shared: State, found: list[State], reduce: Callable[[Tensor], Tensor]) -> State:
    """The shared adapter moved, number by number, by what ``reduce`` makes of the users' numbers [K, ...] in ascending order."""
    names = found[0] if found else ()
    return add(shared, {name: reduce(torch.stack([x[name] for x in found]).sort(0).values) for name in names})

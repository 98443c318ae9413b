"""SCAFFOLD: every user corrects their steps by how their own mean gradient differs from everybody's; then FedIT's mean.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, arXiv 1910.06378, algorithm 1 with
option II; on whatever is shared.

    y <- y - l (g_k(y) - c_k + c)    K times from x,    c_k' = c_k - c + (x - y) / (K l)
    x <- x + lr sum_k p_k (y_k - x),    c <- c + |S| / N sum_k p_k (c_k' - c_k)

S of N users are asked. A user's c_k stays home beside what is private. The server's c is the second half of the shared state and
goes down with it, and each user's change of it goes up with the update: twice FedIT's bytes both ways. Users multiply by |S| / N, so
that the server needs sums only. Where a gradient is clipped, as under guarantee E, g_k is the clipped and noised one: the
correction comes after it, and c_k is a mean of these. So all that leaves is made of what E has paid for and what the server has sent.

Plain SGD only: with momentum or AdamW (x - y) / (K l) is no mean gradient. Refused under guarantee U, whose clip would leave the server
another c than users hold.
"""

from collections.abc import Iterable

from strategies.aggregators.fedit import fedit
from strategies.base import Aggregator, Release
from strategies.options import within
from strategies.schemes.copies import of, put
from strategies.tree import State, add, weighted_mean

CONTROL, OWN = "control", "own_control"  # blocks beside the shared adapter's: c, which travels, and c_k, which a user keeps


def scaffold(lr: float = 1.0) -> Aggregator:
    """Build SCAFFOLD. Linear. ``lr`` is the server's step."""
    within("lr", lr, 0, 1e3)

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        mean = weighted_mean((r.weight, r.update) for r in releases)
        return memory, add(shared, {n: v if n.startswith(f"{CONTROL}/") else lr * v for n, v in mean.items()})

    return fedit()._replace(apply=apply, paper="arXiv 1910.06378", controls=True)


def correction(state: State) -> State:
    """C - c_k, by the names of the tensors whose gradient it is added to."""
    own = of(state, OWN)
    return {f"shared/{name}": c - own[name] for name, c in of(state, CONTROL).items()}


def change(before: State, after: State, steps: int, lr: float) -> State:
    """c_k' - c_k of a user who took so many steps of that length, by the names that `correction` has; without a step nothing."""
    moved = {f"shared/{name}": c for name, c in of(before, CONTROL).items()} if steps and lr else {}
    return {key: (before[key] - after[key]) / (steps * lr) - c for key, c in moved.items()}


def renewed(state: State, changes: State, share: float) -> State:
    """A user's tensors with c_k' in c_k's place, and the change, times |S| / N, added to c: what leaves of it is the difference."""
    found = {key.removeprefix("shared/"): value for key, value in changes.items()}
    own, common = of(state, OWN), of(state, CONTROL)
    kept = put(state, OWN, {name: own[name] + value for name, value in found.items()})
    return put(kept, CONTROL, {name: common[name] + share * value for name, value in found.items()})

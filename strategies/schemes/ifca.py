"""IFCA: several shared adapters; each round a user trains the one that fits the own examples best, and tells nobody which.

Ghosh et al., "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, arXiv 2006.04088, algorithm 1 (model averaging):

    j_k = argmin_j f_k(w_j),    w_j <- sum_{k: j_k = j} p_k theta_k / sum_{k: j_k = j} p_k

A release has a slot for every cluster, zero in all but one, and a 1 in a vector of k at the same place: a sum of releases then gives
every mean, and does not tell who is where. Where all fit alike, as before the first round, the cluster of a user is drawn.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from strategies.base import Aggregator, Owner, Phase, Release, Scheme, Task
from strategies.options import within
from strategies.schemes.copies import mixed, of, put
from strategies.sums import total
from strategies.tree import State

MEMBERS = "cluster/members"  # [k], zero at the server
CHOICE = "private/cluster"  # [1], which cluster a user is in


def ifca(clusters: float = 2) -> Scheme:
    """``clusters``: k, at least 2. A user's model is the cluster's as received; "shared" in a report is the first cluster's."""
    count = int(within("clusters", clusters, 2, 64, "scheme_options"))
    return Scheme(
        ("shared", "private"),
        _owner,
        (Phase("shared", ("private",), applies=("private",), begin=_with(count), end=_into_slot),),
        "arXiv 2006.04088",
        Phase("private", ("private",), applies=("private",), view=partial(_picked, clusters=count)),
        twins=("private",),
        own=(("cluster", 0.0),),
        clusters=count,
        needs=(("private_from", 0), ("personalize", 0), ("shared_ranks", ())),
    )


def slot(cluster: int) -> str:
    """The block of a cluster's adapter: the first one's is the shared adapter."""
    return f"cluster{cluster}" if cluster else "shared"


def by_cluster(inner: Aggregator, clusters: int) -> Aggregator:
    """The aggregator for each cluster by itself, on those who are in it. Linear where ``inner`` is: a sum parts as one release does."""

    def init(shared: State) -> State:
        return {f"{j}:{n}": v for j in range(clusters) for n, v in inner.init(_slot_of(shared, j)).items()}

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        full = (release for release in releases if release.update)
        found = total(full) if inner.linear else [*full]
        kept, after = {}, {MEMBERS: shared[MEMBERS]}
        for j in range(clusters):
            own = {n.removeprefix(f"{j}:"): v for n, v in memory.items() if n.startswith(f"{j}:")}
            of_slot = (_part(release, j) for release in found if float(release.update[MEMBERS][j]) > 0)
            own, mean = inner.apply(own, _slot_of(shared, j), of_slot)
            kept |= {f"{j}:{n}": v for n, v in own.items()}
            after |= {_named(n, j): v for n, v in mean.items()}
        return kept, {name: after[name] for name in shared}

    return inner._replace(init=init, apply=apply)


def _owner(block: str, _name: str) -> Owner:
    return "private" if block == "private" else "shared"


def _with(count: int) -> Callable[[State, Task], State]:
    return lambda state, _task: _picked(state, count)


def _picked(state: State, clusters: int) -> State:
    """The private adapter is the chosen cluster's."""
    found = of(state, slot(0))
    for j in range(1, clusters):
        found = mixed((state[CHOICE] == j).float(), of(state, slot(j)), found)
    return put(state, "private", found)


def _into_slot(_before: State, after: State) -> State:
    choice, members = int(after[CHOICE]), torch.zeros_like(after[MEMBERS])
    members[choice] = 1
    trained = {name: value.clone() for name, value in of(after, "private").items() if f"{slot(choice)}/{name}" in after}
    return put(after, slot(choice), trained) | {MEMBERS: members}


def _named(name: str, cluster: int) -> str:
    return f"{slot(cluster)}/{name}" if cluster else name


def _slot_of(state: State, cluster: int) -> State:
    prefix = f"{slot(cluster)}/"
    if cluster:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value for name, value in state.items() if not name.startswith("cluster")}


def _part(release: Release, cluster: int) -> Release:
    mass: Tensor = release.update[MEMBERS][cluster]
    return replace(release, update=_slot_of(release.update, cluster), weight=float(mass))

"""FLTrust: the server trains on data of its own, and trusts a user as far as their update points where its own does.

Cao et al., "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021, arXiv 2012.13995, algorithm 2; over
users of equal weight, on the jointly flattened update of both LoRA factors.

    t_k = max(0, cos(x_k - x, g_0)),    x <- x + alpha / sum_k t_k  sum_k t_k ||g_0|| / ||x_k - x|| (x_k - x)

g_0 is the update of the scenario's `root_users`, whose data is the server's own: the mean of theirs, trained as everybody's is. They
train in every round and are nobody's peers. The round loop asks them apart from all others and marks what comes back
(`Release.root`), which no message of a node can do; over Flower the server trusts the node that keeps them, which should be its own.
Of the others any number may lie. Without a root update, and where nobody points its way, the adapter stays. No promise of privacy.
"""

from collections.abc import Iterable

import torch

from strategies.aggregators.fedit import both
from strategies.base import Aggregator, Release
from strategies.options import within
from strategies.tree import State
from strategies.users import combined, toward, updates


def fltrust(lr: float = 1.0) -> Aggregator:
    """Build FLTrust. Not linear. ``lr`` is alpha, the server's step."""
    within("lr", lr, 0, 1e3)

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        given = sorted((release for release in releases if release.update), key=lambda release: not release.root)
        if len(given) < 2 or not given[0].root:
            return memory, shared
        root, *others = updates(given, shared)
        along_K, norm_K, length = toward(root, others)
        unit_K = 1 / norm_K.clamp(min=torch.finfo(torch.float64).tiny)
        trust_K = (along_K * unit_K / (length or 1.0)).clamp(min=0)
        share_K = lr * length * trust_K * unit_K / trust_K.sum() if bool(trust_K.any()) else torch.zeros_like(trust_K)
        return memory, combined(shared, others, share_K)

    return Aggregator(lambda _: {}, apply, both, linear=False, paper="arXiv 2012.13995", individual=True, rooted=True)

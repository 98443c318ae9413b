"""Norm clipping: nobody's update is longer than a bound; then the mean.

Sun et al., "Can You Really Backdoor Federated Learning?", arXiv 1911.07963, section 5; over users of equal weight.

    x <- x + 1/K sum_k (x_k - x) min(1, bound / ||x_k - x||)

By itself no guarantee of privacy: it has no noise.
"""

from collections.abc import Iterable

from strategies.base import Aggregator, Release
from strategies.options import within
from strategies.tree import State
from strategies.users import combined, norms, updates


def norm_clip(bound: float = 0.0) -> Aggregator:
    """Build norm clipping. Not linear. ``bound`` is L2 over the whole update; 0: the median of the users' norms."""
    within("bound", bound, 0, 1e9)

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        found = updates(releases, shared)
        if not found:
            return memory, shared
        norm_K = norms(found)
        limit = bound or float(norm_K.quantile(0.5))
        return memory, combined(shared, found, (limit / norm_K.clamp(min=limit or 1.0)) / len(found))

    return Aggregator(lambda _: {}, apply, lambda _: ("lora_A", "lora_B"), linear=False, paper="arXiv 1911.07963", individual=True)

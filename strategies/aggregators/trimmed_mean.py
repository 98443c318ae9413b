"""Trimmed mean: of every number the largest and the smallest are left out, whoever sent them; then the mean.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, arXiv 1803.01498, definition 2; over
users of equal weight.
"""

from collections.abc import Iterable

from torch import Tensor

from strategies.base import Aggregator, Release
from strategies.options import within
from strategies.tree import State
from strategies.users import numberwise, updates


def trimmed_mean(share: float = 0.1) -> Aggregator:
    """Build the trimmed mean. Not linear. ``share`` of the users is left out at either end, rounded down; 0 is the plain mean."""
    within("share", share, 0, 0.5)

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        return memory, numberwise(shared, updates(releases, shared), lambda x: trimmed(x, share))

    return Aggregator(lambda _: {}, apply, lambda _: ("lora_A", "lora_B"), linear=False, paper="arXiv 1803.01498", individual=True)


def trimmed(ascending_K: Tensor, share: float) -> Tensor:
    """The mean along the first axis without that share at either end; at least the middle one, or two, is left."""
    count = len(ascending_K)
    out = min(int(share * count + 1e-9), (count - 1) // 2)
    return ascending_K[out : count - out].mean(0)

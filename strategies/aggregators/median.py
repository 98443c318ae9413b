"""Median: of every number the middle one, or the mean of the two in the middle.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, arXiv 1803.01498, definition 1; over
users of equal weight.
"""

from strategies.aggregators.trimmed_mean import trimmed_mean
from strategies.base import Aggregator


def median() -> Aggregator:
    """Build the median: the trimmed mean that leaves out all it can. Not linear."""
    return trimmed_mean(0.5)

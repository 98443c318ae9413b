"""Krum: the one update that lies closest to its neighbours.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017, arXiv 1703.02757, section 4;
the scores are in `multi_krum`.
"""

from strategies.aggregators.multi_krum import selecting
from strategies.base import Aggregator


def krum(share: float = 0.2) -> Aggregator:
    """Build Krum. Not linear; returns one user's update. ``share`` of the users may be adversaries."""
    return selecting(share, lambda _users, _adversaries: 1)

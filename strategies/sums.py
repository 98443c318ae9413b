"""The sum of releases is a release: what a node sends in its users' place where an aggregator is linear."""

from collections.abc import Iterable

from torch import Tensor

from strategies.base import Release


def total(releases: Iterable[Release]) -> list[Release]:
    """The sum of releases, which is a release, added up in float64; nothing for nothing."""
    update: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    weight, users = 0.0, 0
    for release in releases:
        weight, users = weight + release.weight, users + release.users
        for name, value in release.update.items():
            update[name] = update[name] + value.double() if name in update else value.double()
        for name, number in release.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + number
    return [Release({n: v.float() for n, v in update.items()}, weight, users, metrics)] if users else []

"""When a release is in order: asked by a node before it adds up its users' releases, and by the server before it aggregates."""

import math

import torch

from strategies.base import Release
from strategies.lora import fits, pairs
from strategies.tree import State, norm


def refusal(release: Release, shared: State, max_norm: float, uniform: bool = False, narrow: bool = False) -> str | None:
    """Why a release is refused, or None. Names, shapes, dtype, finite numbers, counts, and L2 norm of the mean update.

    ``uniform``: every user's weight must be 1. ``narrow``: factors may have fewer ranks than the shared ones, both of a pair equally.
    """
    unknown = [name for name in release.update if name not in shared]
    if unknown:
        return "unknown tensor"
    if not all(fits(name, value, shared[name], narrow) for name, value in release.update.items()):
        return "wrong shape"
    if any(release.update[b].shape[1] != release.update[a].shape[0] for b, a in pairs(release.update)):
        return "wrong shape"
    if any(value.dtype != torch.float32 for value in release.update.values()):
        return "wrong dtype"
    if not 0 <= release.weight < float("inf") or (release.weight == 0 and release.update):
        return "bad weight"
    if uniform and release.update and release.weight != release.users:
        return "bad weight"
    if release.users < 1 or not all(math.isfinite(number) for number in release.metrics.values()):
        return "bad count"
    if not all(bool(value.isfinite().all()) for value in release.update.values()):
        return "not finite"
    if release.update and norm(release.update) > max_norm * release.weight:
        return "norm too large"
    return None

"""What the server lets in: a release with the wrong names, shapes or numbers is dropped and counted, and never ends a run."""

from collections import Counter
from collections.abc import Iterable, Iterator

import torch

from strategies.base import Release
from strategies.tree import State, norm


def refusal(release: Release, shared: State, max_norm: float) -> str | None:
    """Why a release is refused, or None. Names, shapes, dtype, finite numbers, weight, and L2 norm of the mean update."""
    unknown = [name for name in release.update if name not in shared]
    if unknown:
        return "unknown tensor"
    if any(value.shape != shared[name].shape for name, value in release.update.items()):
        return "wrong shape"
    if any(value.dtype != torch.float32 for value in release.update.values()):
        return "wrong dtype"
    if not 0 <= release.weight < float("inf") or (release.weight == 0 and release.update):
        return "bad weight"
    if not all(bool(value.isfinite().all()) for value in release.update.values()):
        return "not finite"
    if release.update and norm(release.update) > max_norm * release.weight:
        return "norm too large"
    return None


def admitted(releases: Iterable[Release], shared: State, max_norm: float, dropped: Counter[str]) -> Iterator[Release]:
    """Yield the releases that are in order; count the others in ``dropped`` by reason."""
    names: frozenset[str] | None = None
    for release in releases:
        reason = refusal(release, shared, max_norm)
        if reason is None and release.update and names is not None and names != release.update.keys():
            reason = "other tensors than the first release"
        if reason is not None:
            dropped[reason] += release.users
            continue
        if release.update and names is None:
            names = frozenset(release.update)
        yield release

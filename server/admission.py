"""What the server lets in: a release with the wrong names, shapes or numbers is dropped and counted, and never ends a run."""

from collections import Counter
from collections.abc import Iterable, Iterator

from strategies.admission import refusal
from strategies.base import Release
from strategies.tree import State


def admitted(releases: Iterable[Release], shared: State, max_norm: float, dropped: Counter[str],
             uniform: bool = False, narrow: bool = False) -> Iterator[Release]:  # fmt: skip
    """Yield the releases that are in order; count the others in ``dropped`` by reason."""
    names: frozenset[str] | None = None
    for release in releases:
        reason = refusal(release, shared, max_norm, uniform, narrow)
        if reason is None and release.update and names is not None and names != release.update.keys():
            reason = "other tensors than the first release"
        if reason is not None:
            dropped[reason] += max(1, release.users)
            continue
        if release.update and names is None:
            names = frozenset(release.update)
        yield release

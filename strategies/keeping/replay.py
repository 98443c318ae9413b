"""Replay: a few of a user's earlier examples train along with the new ones; they never leave the node.

Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", arXiv 1902.10486, with reservoir sampling (Vitter 1985): after n
examples each of them is remembered with probability buffer / n. What is remembered are the examples' numbers in time.
Replayed examples join the new ones in one training set (deviation: not in a batch of their own), so with ``buffer = 0``, which is all,
a period trains as on all data so far.
"""

import torch

from strategies.keeping.contract import MEMORY, Keeping, Lesson
from strategies.tree import State, generator

IDS = f"{MEMORY}/ids"  # int64 [buffer], -1: free


def replay(buffer: float = 16) -> Keeping:
    """Remember so many examples of all earlier periods; 0: all of them."""

    def memory(_start: State, _periods: int) -> State:
        return {IDS: torch.full((int(buffer),), -1)}

    return Keeping("arXiv 1902.10486", memory, _remember, replays=True)


def replayed(state: State, total: int) -> list[int]:
    """The numbers of the examples that train along, of so many earlier ones."""
    if IDS not in state or not len(state[IDS]):
        return list(range(total)) if IDS in state else []
    return sorted(at for at in state[IDS].tolist() if 0 <= at < total)


def _remember(state: State, lesson: Lesson) -> State:
    return state | {IDS: reservoir(state[IDS], lesson.seen, lesson.total, lesson.key)}


def reservoir(ids: torch.Tensor, seen: int, total: int, key: tuple[object, ...]) -> torch.Tensor:
    """Algorithm R from example ``seen`` up to ``total``. It does not matter in how many pieces they come."""
    kept = ids.clone()
    for at in range(seen, total):
        place = at if at < len(kept) else int(torch.randint(at + 1, (1,), generator=generator(*key, "reservoir", at)))
        if place < len(kept):
            kept[place] = at
    return kept

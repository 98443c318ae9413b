"""Slow and fast: a fast LoRA trains, a slow one takes over a share of it after each period, and their sum is used.

Two memories of different speed, after Arani et al., "Learning Fast, Learning Slow", ICLR 2022, arXiv 2201.12604, whose slow model is a
moving average of the fast one's weights. Here as a period begins, on the changes of the weights,

    slow  <-  slow + share * fast,      fast  <-  (1 - share) * fast

so that the sum is what it was. Deviations: an average once a period, not once a step; no consistency loss. The slow LoRA has
twice the rank; where the sum needs more, the best approximation of that rank is kept.
"""

import torch
from torch import Tensor

from strategies.keeping.contract import A, B, Keeping, Lesson, modules, remembered, summed
from strategies.tree import State

SLOW, WIDER = "slow", 2


def slow_fast(share: float = 0.5) -> Keeping:
    """Let a slow LoRA take over a share of the fast one after each period."""

    def begin(state: State, _lesson: Lesson) -> State:
        found = dict(state)
        for name in modules(state):
            slow, a, b = remembered(name, SLOW), state[name + A], state[name + B]
            new_a, new_b = nearest(torch.cat([state[slow + A], a]), torch.cat([state[slow + B], share * b], 1), len(state[slow + A]))
            found |= {slow + A: new_a, slow + B: new_b, name + B: (1 - share) * b}
        return found

    return Keeping("arXiv 2201.12604", memory, begin, summed(SLOW), kinds=("lora",))


def memory(start: State, _periods: int) -> State:
    """A slow LoRA that changes nothing."""
    found = {}
    for name in modules(start):
        rank, slow = WIDER * len(start[name + A]), remembered(name, SLOW)
        found[slow + A] = start[name + A].new_zeros(rank, start[name + A].shape[1])
        found[slow + B] = start[name + B].new_zeros(len(start[name + B]), rank)
    return found


def nearest(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the best approximation of ``b @ a`` of a rank (Eckart & Young), each with half of the singular values."""
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, sizes, v = torch.linalg.svd(r_b @ r_a.T)
    half = sizes[:rank].sqrt()
    found_a, found_b = half[:, None] * (v[:rank] @ q_a.T), (q_b @ u[:, :rank]) * half
    room = rank - len(half)
    return (torch.nn.functional.pad(found_a, (0, 0, 0, room)).to(a), torch.nn.functional.pad(found_b, (0, room)).to(b))

"""The largest numbers of each tensor; what is left out is remembered and added to the user's next update.

Stich, Cordonnier & Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv 1809.07599, algorithm 1, and Karimireddy, Rebjock, Stich &
Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019, arXiv 1901.09847, algorithm 2; the largest of
each tensor as in Lin et al., "Deep Gradient Compression", ICLR 2018, arXiv 1712.01887, without its momentum and warm-up:

    sent_t = top_k(x_t + m_t),    m_{t+1} = x_t + m_t - sent_t

Deviation: x is a user's whole update of a round, and m stays as it is in rounds without the user.

On the wire: the numbers that are not zero, and for each how many places were skipped since the one before, in 16 bits. So places are in
order and no two are the same, whatever somebody sends. K: numbers that are sent.
"""

import math

import torch
from torch import Tensor

from strategies.tree import State

FAR = 2**16  # places from one number to the next, at most; a zero stands where there would be more


def press(value: Tensor, keep: float) -> Tensor:
    """The largest share ``keep`` of the numbers, at least one; zero elsewhere."""
    count = min(value.numel(), max(1, math.ceil(keep * value.numel())))
    if count == value.numel():
        return value
    flat, found = value.flatten(), torch.zeros(value.numel(), dtype=value.dtype)
    at_K = flat.abs().topk(count).indices
    found[at_K] = flat[at_K]
    return found.reshape(value.shape)


def remembering(update: State, memory: State, keep: float) -> tuple[State, State]:
    """(sent, memory): of the update and what was left out before. What is not finite is sent as it is and leaves the memory alone."""
    owed = {name: value + memory[name] if name in memory else value for name, value in update.items()}
    if not all(bool(value.isfinite().all()) for value in owed.values()):
        return update, memory
    sent = {name: press(value, keep) for name, value in owed.items()}
    return sent, {**memory, **{name: value - sent[name] for name, value in owed.items()}}


def pack(value: Tensor) -> tuple[Tensor, Tensor]:
    """(the numbers that are not zero, float32 K; places skipped before each, int16 K, -2**15 for none)."""
    flat = value.contiguous().view(torch.int32).flatten()
    at_K = flat.nonzero().flatten()  # -0 is not zero here
    gap_K = torch.diff(at_K, prepend=torch.tensor([-1])) - 1
    after_K = torch.arange(len(at_K)) + (gap_K // FAR).cumsum(0)
    size = len(at_K) + int((gap_K // FAR).sum())
    gaps, numbers = torch.full((size,), FAR - 1), torch.zeros(size, dtype=torch.int32)
    gaps[after_K], numbers[after_K] = gap_K % FAR, flat[at_K]
    return numbers.view(torch.float32), (gaps - FAR // 2).to(torch.int16)


def unpack(packed_K: Tensor, gap_K: Tensor, shape: torch.Size) -> Tensor:
    """Undo `pack`, to the last bit. Raises `ValueError` before it makes anything for what does not fit into the shape."""
    if packed_K.dim() != 1 or gap_K.shape != packed_K.shape or gap_K.dtype != torch.int16:
        raise ValueError(f"{tuple(packed_K.shape)} numbers have places {gap_K.dtype} of shape {tuple(gap_K.shape)}")
    at_K = (gap_K.long() + FAR // 2 + 1).cumsum(0) - 1
    if len(at_K) and int(at_K[-1]) >= shape.numel():
        raise ValueError(f"a number stands at place {int(at_K[-1])} of {shape.numel()}")
    found = torch.zeros(shape.numel(), dtype=torch.float32)
    found[at_K] = packed_K
    return found.reshape(shape)

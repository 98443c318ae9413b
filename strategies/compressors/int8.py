"""8 bits a number: whole multiples of a step, which is a power of two for every block of 256 numbers, rounded at random without bias.

Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017, arXiv 1610.02132, section
3.1, with blocks and their largest number in place of buckets and their norm, as in Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", ICLR 2022, arXiv 2110.02861. A step is the least power of two of which 127 reach the block's largest number: then what
has been rounded once is rounded to itself, and the error of a number is below 2 / 127 of its block's largest.

N: blocks, B: numbers of one.
"""

import torch
from torch import Tensor

BLOCK, MOST = 256, 127
LEAST, LARGEST = -120, 122  # exponents of a step


def press(value: Tensor, coins: torch.Generator) -> Tensor:
    """Rounded so that the mean over coins is the number. What holds a number that is none stays as it is."""
    if not value.numel() or not bool(value.isfinite().all()):
        return value
    block_NB = _blocks(value)
    step_N = _steps(block_NB)
    coin_NB = torch.rand(block_NB.shape, generator=coins).double()
    return _whole(((_over(block_NB, step_N) + coin_NB).floor()), step_N, value.shape)


def pack(value: Tensor) -> tuple[Tensor, Tensor] | None:
    """(int8 of the same shape, exponents of the steps, int8 N); None where that loses a bit."""
    if not value.numel() or not bool(value.isfinite().all()):
        return None
    block_NB = _blocks(value)
    step_N = _steps(block_NB)
    times_NB = _over(block_NB, step_N)
    found = times_NB.to(torch.int8).flatten()[: value.numel()].reshape(value.shape)
    exact = torch.equal(unpack(found, step_N).view(torch.int32), value.contiguous().view(torch.int32))
    return (found, step_N) if exact else None


def unpack(packed: Tensor, step_N: Tensor) -> Tensor:
    """Undo `pack`, to the last bit. Raises `ValueError` for steps that `pack` never gives."""
    blocks = -(-packed.numel() // BLOCK)
    if step_N.dtype != torch.int8 or step_N.shape != (blocks,):
        raise ValueError(f"{packed.numel()} numbers of 8 bits need {blocks} steps, not {step_N.dtype} of shape {tuple(step_N.shape)}")
    if blocks and not LEAST <= int(step_N.min()) <= int(step_N.max()) <= LARGEST:
        raise ValueError("a step of 8 bits is out of range")
    return _whole(_blocks(packed), step_N, packed.shape)


def _blocks(value: Tensor) -> Tensor:
    flat = value.flatten().double()
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)


def _steps(block_NB: Tensor) -> Tensor:
    part_N, exponent_N = torch.frexp(block_NB.abs().amax(1) / MOST)  # part in [1/2, 1)
    return torch.where(part_N == 0, LEAST, exponent_N - (part_N == 0.5).int()).clamp(LEAST, LARGEST).to(torch.int8)


def _over(block_NB: Tensor, step_N: Tensor) -> Tensor:
    return block_NB * torch.exp2(-step_N.double()).unsqueeze(1)


def _whole(times_NB: Tensor, step_N: Tensor, shape: torch.Size) -> Tensor:
    found_NB = times_NB * torch.exp2(step_N.double()).unsqueeze(1)
    return found_NB.flatten()[: shape.numel()].float().reshape(shape)

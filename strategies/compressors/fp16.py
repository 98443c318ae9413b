"""float16 with one power of two for each tensor, 2 bytes a number, 11 bits of mantissa for the larger numbers, rounded to the nearest.

Micikevicius et al., "Mixed Precision Training", ICLR 2018, arXiv 1710.03740, section 3.2 (scaling keeps small numbers above float16's
least one). Here every tensor is scaled so that its largest number lies in [2**14, 2**15): nothing overflows, and what is 2**-29 of the
largest number or more keeps all its bits.
"""

import torch
from torch import Tensor

TOP, LEAST = 15, -100  # exponents: below what the largest number is scaled to; below it nothing is scaled up any further


def press(value: Tensor) -> Tensor:
    """The nearest numbers that scaled float16 holds, as float32. What holds a number that is none stays as it is."""
    if not value.numel() or not bool(value.isfinite().all()):
        return value
    exponent = exponent_of(value)
    found = unpack(_scaled(value, exponent), exponent)
    after = exponent_of(found)  # the largest number may have been rounded up to the next power of two
    return found if after == exponent else unpack(_scaled(value, after), after)


def pack(value: Tensor) -> tuple[Tensor, Tensor] | None:
    """(float16 of the same shape, its exponent, int16 []); None where that loses a bit."""
    if not value.numel() or not bool(value.isfinite().all()):
        return None
    exponent = exponent_of(value)
    found = _scaled(value, exponent)
    exact = torch.equal(unpack(found, exponent).view(torch.int32), value.contiguous().view(torch.int32))
    return (found, torch.tensor(exponent, dtype=torch.int16)) if exact else None


def unpack(packed: Tensor, exponent: Tensor | int) -> Tensor:
    """Undo `pack`, to the last bit. Raises `ValueError` for an exponent that `pack` never gives."""
    if isinstance(exponent, Tensor) and (exponent.dtype != torch.int16 or exponent.dim() or not LEAST <= int(exponent) <= 128):
        raise ValueError(f"a scale of float16 is {exponent.dtype} of shape {tuple(exponent.shape)}, or out of range")
    return (packed.double() * 2.0 ** (int(exponent) - TOP)).float()


def exponent_of(value: Tensor) -> int:
    """The least e of which 2**e is above every number, and at least `LEAST`."""
    return max(int(torch.frexp(value.double().abs().max()).exponent), LEAST)


def _scaled(value: Tensor, exponent: int) -> Tensor:
    return (value.double() * 2.0 ** (TOP - exponent)).float().half()

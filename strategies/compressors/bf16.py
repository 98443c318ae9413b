"""bfloat16: the upper half of a float32, 2 bytes a number, 8 bits of mantissa, rounded to the nearest.

Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", arXiv 1905.12322. The error is at most 2**-8 of a number.
"""

import torch
from torch import Tensor


def press(value: Tensor) -> Tensor:
    """The nearest numbers that bfloat16 holds, as float32."""
    return value.bfloat16().float()


def pack(value: Tensor) -> tuple[Tensor, None] | None:
    """The upper halves, int16 of the same shape; None where a lower half is not zero."""
    bits = value.contiguous().view(torch.int32)
    return None if bool((bits & 0xFFFF).any()) else ((bits >> 16).to(torch.int16), None)


def unpack(packed: Tensor) -> Tensor:
    """Undo `pack`, to the last bit."""
    return (packed.to(torch.int32) << 16).view(torch.float32)

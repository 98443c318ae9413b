"""Tensors as they lie on the wire: each in the smallest form that holds every bit of it.

| form | values | beside |
|---|---|---|
| float32 | float32, the tensor's shape | |
| bfloat16 | int16, the tensor's shape | |
| scaled float16 | float16, the tensor's shape | exponent, int16 [] |
| steps of 8 bits | int8, the tensor's shape | exponents, int8, one for 256 numbers |
| few numbers | float32, as many as are not zero | places, int16, as many |

Nothing is lost here, whatever the scenario says: what was pressed by `strategies.compressors` fits into a smaller form, and other
tensors do not. A reader takes the shape of "few numbers" from the shared adapter that it has, never from the message, and makes nothing
that is larger than that or than the message.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.compressors import bf16, fp16, int8, topk
from strategies.tree import State, nbytes

FRAME = 128  # bytes that an array takes beside its numbers
SAMPLE = 64 * int8.BLOCK  # numbers that are tried before all of them are
DTYPES = (torch.float32, torch.int16, torch.float16, torch.int8)  # that a form may have
TRIED: tuple[Callable[[Tensor], tuple[Tensor, Tensor | None] | None], ...] = (bf16.pack, fp16.pack, int8.pack)


class Packed(NamedTuple):
    """What travels of a state."""

    values: State
    beside: State  # of those tensors whose form needs something

    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return nbytes(self.values) + nbytes(self.beside)


def pack(state: Mapping[str, Tensor], like: Mapping[str, Tensor] | None = None) -> Packed:
    """The smallest forms. ``like``: tensors that the reader has; of a tensor of the same shape only what is not zero may be sent."""
    values: State = {}
    beside: State = {}
    for name, value in state.items():
        plain = value.detach().float().cpu().contiguous()
        known = like is not None and name in like and like[name].shape == plain.shape
        values[name], more = min(_forms(plain, known), key=_size)
        if more is not None:
            beside[name] = more
    return Packed(values, beside)


def unpack(packed: Packed, like: Mapping[str, Tensor] | None = None) -> State:
    """Undo `pack`. Raises `ValueError` for what it never gives."""
    if stray := [name for name in packed.beside if name not in packed.values]:
        raise ValueError(f"there is something beside '{stray[0]}', and no such tensor")
    return {name: _read(name, value, packed.beside.get(name), like or {}) for name, value in packed.values.items()}


def _forms(value: Tensor, known: bool) -> list[tuple[Tensor, Tensor | None]]:
    some = value.flatten()[:SAMPLE]
    found = [form for each in TRIED if each(some) is not None and (form := each(value)) is not None]
    if known and 6 * int(value.count_nonzero()) < 4 * value.numel():
        found.append(topk.pack(value))
    return [(value, None), *found]


def _size(form: tuple[Tensor, Tensor | None]) -> int:
    value, more = form
    return nbytes({"": value}) + (0 if more is None else FRAME + nbytes({"": more}))


def _read(name: str, value: Tensor, more: Tensor | None, like: Mapping[str, Tensor]) -> Tensor:
    if value.dtype == torch.float32 and more is None:
        return value
    if value.dtype == torch.int16 and more is None:
        return bf16.unpack(value)
    if value.dtype == torch.float16 and more is not None:
        return fp16.unpack(value, more)
    if value.dtype == torch.int8 and more is not None:
        return int8.unpack(value, more)
    if value.dtype == torch.float32 and more is not None and name in like:
        return topk.unpack(value, more, like[name].shape)
    raise ValueError(f"'{name}' is {value.dtype} {'alone' if more is None else 'with something beside'}")

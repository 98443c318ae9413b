"""Where the standard normal numbers of privacy noise come from.

| | draws from | use it in |
|---|---|---|
| ``entropic`` | the operating system's entropy; nobody can draw the same again | a deployment |
| ``keyed`` | a generator seeded by a key | a simulation, which must give the same numbers twice |

A keyed draw protects nobody from those who know the key: they draw the same noise and subtract it. So its numbers have float32's 24
bits, which takes a fifth of the time, and none is beyond 5.8.

``entropic`` follows Holohan & Braghin, "Secure Random Sampling in Differential Privacy", ESORICS 2021, arXiv 2107.10138, section 5: a
floating-point number made from one draw can give away what was added to it, since not every sum can come about. Each number is the sum
of four independent draws, divided by 2; to undo that takes a search that is exponential in the bits of the uniform numbers. No two
of the four share a Box-Muller pair, since cos + sin is one draw again. It hinders the known attack; it is no proof for floating point.
"""

import math
import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from configs.errors import InputError, nearest
from strategies.tree import State, generator

Noise = Callable[[torch.Size], Tensor]  # a shape -> that many independent standard normal numbers, float64, on the CPU

CHUNK = 1 << 20  # numbers drawn at a time: 32 bytes of entropy each


def keyed(*key: object) -> Noise:
    """Noise that depends on the key and on how much was drawn before, and on nothing else."""
    source = generator(*key)
    return lambda shape: torch.randn(shape, generator=source).double()


def entropic() -> Noise:
    """Noise that cannot be drawn twice."""

    def draw(shape: torch.Size) -> Tensor:
        count = math.prod(shape)
        parts = [_normal(min(CHUNK, count - start)) for start in range(0, count, CHUNK)]
        return torch.from_numpy(np.concatenate([*parts, np.empty(0)])).reshape(shape)

    return draw


def source(seeded: bool, *key: object) -> Noise:
    """Keyed noise where a round that is repeated must be the same release, else entropic."""
    return keyed(*key) if seeded else entropic()


def declared(where: str, said: object) -> str:
    """What somebody's configuration says of the source: "seed", "system", or "" for nothing. Raises `InputError` for anything else."""
    if (found := str(said)) not in ("", "seed", "system"):
        raise InputError(f"noise in the {where} config must be 'system' or 'seed', got '{found}'{nearest(found, ('system', 'seed'))}")
    return found


def standard(like: State, noise: Noise) -> State:
    """A number for each entry of ``like``, drawn name by name in the alphabet's order, so that equal keys give equal states."""
    return {name: noise(like[name].shape) for name in sorted(like)}


def _normal(count: int) -> np.ndarray:
    """Sums of four Box-Muller draws over 2; ``u`` lies in (0, 1], ``v`` in [0, 1), 53 bits each."""
    half = (count + 1) // 2
    bits = np.frombuffer(os.urandom(8 * 2 * 4 * half), np.uint64).reshape(2, 4, half) >> 11
    u, v = (bits[0] + 1) * 2.0**-53, bits[1] * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * v
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).sum(0)[:count] / 2

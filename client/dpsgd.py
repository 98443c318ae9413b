"""DP-SGD for a cohort: every user's units are drawn, clipped and noised by themselves, in the same fused pass as without privacy.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv 1607.00133, algorithm 1, for each user k:

    g_k = ( sum_i min(1, C / |g_i|) g_i  +  z_k C N(0, I) ) / L_k,    g_i the gradient of unit i: the sum over its examples

The units i of a step are drawn by a coin each with rate q_k = L_k / n_k, or are all there where a batch holds everything (q_k = 1).
L_k is the expected number of examples, never the drawn one; a step without units still is a step, of noise. Deviation: C bounds what
a whole privacy unit adds (a document's chunks together), not what one row adds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from client.data.types import Encoded
from client.flat import Flat
from client.learner import Learner
from strategies.privacy.noise import Noise

Units = list[list[Encoded]]  # a user's examples by privacy unit


@dataclass(frozen=True)
class Guard:
    """How a phase is guarded: the bound C, and where randomness comes from, ``draw(key...)``. The z_k are the learners' own."""

    clip: float
    draw: Callable[..., Noise]


def units(examples: Sequence[Encoded]) -> Units:
    """Group examples by privacy unit, in order of their first one."""
    found: dict[int, list[Encoded]] = {}
    for example in examples:
        found.setdefault(example.unit, []).append(example)
    return list(found.values())


def batches(cohort: Sequence[Learner], batch: int, guard: Guard, epoch: int) -> Iterator[list[Units]]:
    """The units of every step of an epoch, for each user that still has steps; the cohort is sorted by size, the largest first."""
    grouped = [units(x.train) for x in cohort]
    steps = [math.ceil(len(x.train) / batch) for x in cohort]
    for step in range(max(steps, default=0)):
        active = sum(count > step for count in steps)
        yield [_drawn(x, grouped[k], batch, guard.draw(*x.key, epoch, step, "sample")) for k, x in enumerate(cohort[:active])]


def add_noise(flat: Flat, cohort: Sequence[Learner], batch: int, guard: Guard, epoch: int, step: int) -> None:
    """Turn each user's clipped sum in ``flat.grad_KP`` into the noised mean: one row for each of ``cohort``."""
    for gradient, x in zip(flat.grad_KP, cohort, strict=False):
        if x.noise:
            noise = guard.draw(*x.key, epoch, step, "noise")(gradient.shape)
            gradient.add_(noise.to(gradient), alpha=x.noise * guard.clip)
        gradient /= min(batch, len(x.train))


def _drawn(x: Learner, grouped: Units, batch: int, coins: Noise) -> Units:
    rate = batch / len(x.train)
    if rate >= 1:
        return grouped
    below = float(torch.special.ndtri(torch.tensor(rate, dtype=torch.float64)))  # a normal number is below it with probability `rate`
    taken = (coins(torch.Size([len(grouped)])) < below).tolist()
    return [unit for unit, take in zip(grouped, taken, strict=True) if take]

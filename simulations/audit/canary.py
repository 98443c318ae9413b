"""Canaries: examples and users that nobody could mistake for another, in a place that holds them or holds nothing, by a fair coin.

The neighbour of guarantee E has nothing in one example's place, and the number of examples stays: an example that is out is `silent`,
which is in every count and in no gradient.

Shape suffixes: M canaries, P numbers that are looked at.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.base import Base
from client.data.types import Dataset, Encoded, Splits
from configs.errors import InputError
from simulations.audit.bound import CONFIDENCE, Floats, bound, most
from strategies.tree import generator

TOKENS = 12  # of a canary


class Result(NamedTuple):
    """What an audit found about one claim."""

    claimed: float  # epsilon
    bound: float  # lower bound of epsilon
    bound_without_noise: float  # of the same training without noise, which must be above the claim
    confidence: float
    canaries: int


def result(claimed: float, scores: tuple[Floats, Floats], coin_M: NDArray[np.bool_], delta: float) -> Result:
    """Bounds of what was scored with noise and without it."""
    with_noise, without = (bound(score_M, coin_M, delta) for score_M in scores)
    return Result(claimed, with_noise, without, CONFIDENCE, len(coin_M))


def enough(canaries: int, epsilon: float, delta: float, group: str) -> None:
    """Raise `InputError` where so many canaries could not refute the claim even if they were all told apart."""
    if (largest := most(canaries, delta)) <= epsilon:
        raise InputError(
            f"{group}.epsilon is {epsilon:g}, and {canaries} canaries can show {largest:.2f} at most, so the audit could not fail: "
            f"ask for less than that, or for more users (data.users)"
        )


def coins(canaries: int, *key: object) -> NDArray[np.bool_]:
    """Which of the canaries are in, bool [M]."""
    return (torch.rand(canaries, generator=generator(*key, "coins")) < 0.5).numpy()


def example(base: Base, dataset: Dataset, seed: int) -> Encoded:
    """A text of random tokens, with a label or an answer to learn, as the data's task has it."""
    draw = generator(seed, "canary")
    ids = torch.randint(base.model.config.vocab_size, (TOKENS,), generator=draw)
    if dataset.label_ids:
        return Encoded(ids, TOKENS, int(torch.randint(len(dataset.label_ids), (1,), generator=draw)), 0)
    return Encoded(ids, 1 if dataset.task == "text" else TOKENS // 2, -1, 0)


def silent(canary: Encoded) -> Encoded:
    """The same example predicting nothing: its loss is 0 whatever the model, and so is its gradient."""
    return replace(canary, start=canary.length, label=-1)


def holding(splits: Splits, canary: Encoded, there: bool) -> Splits:
    """A user's examples with the canary as one more privacy unit, there or silent."""
    unit = 1 + max(e.unit for e in splits.train)
    return Splits((*splits.train, replace(canary if there else silent(canary), unit=unit)), (), ())


def likelihood(seen_MP: Tensor, out_MP: Tensor, in_MP: Tensor) -> Floats:
    """Log likelihood ratio of "in" to "out" for Gaussian noise around what each would have given without noise, [M].

    How large the noise is beside a canary's effect is taken to be the same for all, and measured: the mean square about "out".
    """
    seen_MP, effect_MP = seen_MP - out_MP, in_MP - out_MP
    size_M = effect_MP.square().sum(1).clamp(min=1e-300)
    noise = (seen_MP.square().mean(1) / size_M).mean()
    return (((seen_MP * effect_MP).sum(1) / size_M - 0.5) / noise.clamp(min=1e-300)).numpy()

"""Noise that later rounds take back in part: a banded matrix factorization, for users whose availability nobody controls.

Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A unified approach to private training", NeurIPS 2023,
arXiv 2306.08153, without the amplification. Rounds t = 1..T, bound S, noise multiplier z, x_t the sum of round t's clipped updates:

    release_t = x_t + z S w_t,    w = C^-1 (normal numbers),    prefix sums: A x + z S B (normal numbers),    A = B C

A is the lower triangle of ones. The factor is in closed form, not optimized: the square root of A, which is Toeplitz with coefficients
c_i = binom(2i, i) / 4^i (Fichtenberger, Henzinger & Upadhyay, "Constant matters", ICML 2023, arXiv 2202.11205), cut off after b of them
(Kalinin & Lampert, "Banded Square Root Matrix Factorization", NeurIPS 2024, arXiv 2405.13763), and each column divided by its norm n_t:

    C_ts = c_(t-s) / n_s,    n_s^2 = sum_(i < b, i <= T-s) c_i^2

Guarantee, zero-out neighbours. A user takes part in rounds that lie at least s >= b apart, so in at most k = ceil(T/s) of them. Columns
that far apart have no row in common, so the user moves C x by at most sqrt(k) S. The T releases together, each chosen in view of those
before (Denisov et al., NeurIPS 2022, arXiv 2202.08312), cost one Gaussian of noise z / sqrt(k), which is the same as k steps of
noise z: one for each round that the user is in, whatever comes after it; for everyone at once, one in rounds 1, s+1, 2s+1, ...
No amplification, whatever the sampling. Whoever chooses the users must keep them s rounds apart.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import InputError
from strategies.base import Release
from strategies.privacy.clipping import positive
from strategies.privacy.events import Event
from strategies.privacy.noise import Noise, standard
from strategies.privacy.user_level import booked, noised, summed
from strategies.tree import State


@dataclass(frozen=True)
class Banded:
    """A factorization and the participation that it is made for."""

    rounds: int  # T, of the whole run
    band: int  # b, diagonals of C; 1: independent noise
    separation: int  # s: a user who took part in round t takes part again in round t + s at the earliest

    def __post_init__(self) -> None:
        if not 1 <= self.band <= self.rounds:
            raise InputError(f"band is {self.band}, and must lie between 1 and the number of rounds, {self.rounds}")
        if self.separation < self.band:
            raise InputError(f"separation is {self.separation}, and must be at least the band, {self.band}")


def coefficients(count: int) -> list[float]:
    """The first coefficients c_i of the square root of the triangle of ones."""
    found = [1.0]
    for i in range(1, count):
        found.append(found[-1] * (2 * i - 1) / (2 * i))
    return found


def column_norm(how: Banded, number: int) -> float:
    """n_t, by which the column of round ``number`` (from 1) is divided."""
    return math.fsum(c * c for c in coefficients(min(how.band, how.rounds - number + 1))) ** 0.5


def encoder(how: Banded) -> Tensor:
    """C, float64, [T, T], lower triangular: columns of norm 1."""
    c_TT = torch.zeros(how.rounds, how.rounds, dtype=torch.float64)
    for i, c in enumerate(coefficients(how.band)):
        c_TT.diagonal(-i).fill_(c)
    return c_TT / c_TT.norm(dim=0)


def decoder(how: Banded) -> Tensor:
    """B = A C^-1, float64, [T, T]: row t is what the prefix sum of round t takes of each normal number."""
    a_TT = torch.ones(how.rounds, how.rounds, dtype=torch.float64).tril()
    return torch.linalg.solve_triangular(encoder(how), a_TT, upper=False, left=False)


def error(how: Banded) -> float:
    """Standard deviation of the prefix sums' noise over z S, root mean square over rounds; independent noise has sqrt((T+1)/2)."""
    return float(decoder(how).square().sum() / how.rounds) ** 0.5


def participations(how: Banded, rounds: int) -> int:
    """k: in how many of the first ``rounds`` a user can have taken part."""
    return math.ceil(rounds / how.separation)


def spent(how: Banded, noise_multiplier: float, rounds: int) -> Event:
    """What the first ``rounds`` releases cost together."""
    return Event(booked(noise_multiplier).noise, steps=participations(how, rounds))


def start(how: Banded, like: State) -> State:
    """The memory before the first round: the last b-1 rounds' v = w / n, newest first.

    It is the noise itself. A checkpoint needs it; whoever else reads it can take the noise away.
    """
    return {_key(age, name): torch.zeros_like(value, dtype=torch.float64) for age in range(1, how.band) for name, value in like.items()}


def correlated(how: Banded, memory: State, normal: State, number: int) -> tuple[State, State]:
    """(memory, w_t) of round ``number`` (from 1) out of fresh normal numbers: v_t = normal_t - sum_i c_i v_(t-i), w_t = n_t v_t."""
    if not 1 <= number <= how.rounds:
        raise InputError(f"round is {number}, and the noise was planned for rounds 1 to {how.rounds}")
    fresh = dict(normal)
    for age, c in enumerate(coefficients(how.band)[1:], start=1):
        fresh = {name: value - c * memory[_key(age, name)] for name, value in fresh.items()}
    ages = [fresh, *({name: memory[_key(age, name)] for name in fresh} for age in range(1, how.band - 1))][: how.band - 1]
    kept = {_key(age, name): value for age, state in enumerate(ages, start=1) for name, value in state.items()}
    return kept, {name: column_norm(how, number) * value for name, value in fresh.items()}


def sum_and_noise(how: Banded, memory: State, releases: Iterable[Release], number: int, bound: float, noise_multiplier: float,
                  denominator: float, noise: Noise, like: State) -> tuple[State, Release, Event]:  # fmt: skip
    """`user_level.sum_and_noise` with correlated noise: (memory, release, what round ``number`` adds to the cost).

    Another bound in another round keeps the guarantee, but what is taken back is then no longer what was added.
    """
    steps = participations(how, number) - participations(how, number - 1)
    event = Event(booked(noise_multiplier).noise, steps=steps)
    total, _ = summed(releases, positive("clip bound", bound), like)
    memory, normal = correlated(how, memory, standard(like, noise), number)
    return memory, noised(total, normal, noise_multiplier * bound, denominator, like), event


def _key(age: int, name: str) -> str:
    return f"{age}/{name}"

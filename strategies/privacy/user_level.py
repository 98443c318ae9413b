"""User-level privacy with a trusted server: every user's clipped update is summed, and the sum is noised before anything else happens.

McMahan, Ramage, Talwar & Zhang, "Learning Differentially Private Recurrent Language Models" (DP-FedAvg), ICLR 2018, arXiv 1710.06963,
algorithm 1 with uniform weights and the fixed-denominator estimator. K users, bound S, noise multiplier z, denominator m:

    release = (sum_k clip_S(x_k - x) + N(0, (z S)^2 I)) / m

Neighbours: one user's update is replaced by zeros (zero-out). Then the sum moves by at most S, and the release costs one Gaussian of
noise z. Whatever an aggregator does with the release (momentum, an SVD) is post-processing. What the guarantee rests on:

- One release a round from each user, of weight 1. A node that sends a sum has clipped each of its users by `bounded`: the sum of n
  users is held to n S here, which bounds the node, but not what one of its users adds.
- m is fixed before the round, and nothing else leaves the sum: no count of users, no metrics.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from configs.errors import InputError, unknown
from strategies.base import Release
from strategies.privacy.clipping import clip, next_bound, positive, split, unclipped
from strategies.privacy.events import Event
from strategies.privacy.noise import Noise, standard
from strategies.tree import State

Sampling = Literal["all", "fixed", "poisson"]  # everyone, or a known cohort; a fixed number; each by a coin that nobody sees
BIT = "unclipped"  # the metric that counts users whose update was within the bound


def bounded(release: Release, bound: float) -> Release:
    """One user's release, clipped on the user's node; the bit of `clipping` goes along as a metric."""
    update, before = clip(release.update, bound)
    return replace(release, update=update, metrics=release.metrics | {BIT: float(unclipped(before, bound))})


def summed(releases: Iterable[Release], bound: float, like: State) -> tuple[State, float]:
    """Add up the updates in float64 over the names of ``like``, and the users' bits less 1/2 each.

    One user moves the first by at most ``bound`` and the second by at most 1/2. Memory: one sum, however many releases. A release that
    is not finite, or has other names or shapes, adds nothing. Raises `InputError` for a user whose weight is not 1.
    """
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in like.items()}
    bits = 0.0
    for release in releases:
        if not release.update and release.weight == 0:
            continue
        if release.weight != release.users or release.users < 1:
            raise InputError(
                f"weight is {release.weight} for {release.users} user(s); under user-level privacy each user's weight is 1"
            )
        if all(name in like and value.shape == like[name].shape for name, value in release.update.items()):
            for name, value in clip(release.update, release.users * bound)[0].items():
                total[name] += value.to(total[name])
            bits += _bits(release)
    return total, bits


def noised(total: State, normal: State, deviation: float, denominator: float, like: State) -> Release:
    """One release of the sum with noise of this standard deviation: whoever divides it by its weight divides by the denominator."""
    update = {name: (value + deviation * normal[name].to(value)).to(like[name].dtype) for name, value in total.items()}
    return Release(update, positive("denominator", denominator))


def sum_and_noise(releases: Iterable[Release], bound: float, noise_multiplier: float, denominator: float, noise: Noise, like: State,
                  sampling: Sampling = "all", rate: float = 1.0) -> tuple[Release, Event]:  # fmt: skip
    """A round's releases as one private release, and what it costs. Without a release it is noise, so that absence does not show.

    Args:
        releases: of a round, single users' or nodes' sums; consumed once.
        bound: L2, of one user's jointly flattened update.
        noise_multiplier: standard deviation of the sum's noise / bound.
        denominator: users expected in a round, never counted: ``rate`` times all users.
        noise: where the noise comes from.
        like: names, shapes and dtypes of the release.
        sampling: how the round's users were chosen, see `booked`.
        rate: share of all users that are expected in a round.
    """
    event = booked(noise_multiplier, sampling, rate)
    total, _ = summed(releases, positive("clip bound", bound), like)
    return noised(total, standard(like, noise), noise_multiplier * bound, denominator, like), event


def booked(noise_multiplier: float, sampling: Sampling = "all", rate: float = 1.0) -> Event:
    """What a round costs. Only Poisson sampling that nobody sees amplifies; any other cohort costs what everyone would."""
    if sampling not in ("all", "fixed", "poisson"):
        raise unknown("sampling", sampling, ("all", "fixed", "poisson"))
    if not 0 <= noise_multiplier < math.inf:
        raise InputError(f"noise multiplier is {noise_multiplier}, and must be a finite number, 0 or more")
    if not 0 < rate <= 1:
        raise InputError(f"rate is {rate}, and must be above 0 and at most 1")
    return Event(noise_multiplier, rate=rate, sampling="poisson") if sampling == "poisson" and rate < 1 else Event(noise_multiplier)


@dataclass(frozen=True)
class Adaptive:
    """How the bound follows the users' norms: see `clipping`."""

    bit_noise: float  # standard deviation of the noise of the sum of bits; the paper's: 1/20 of the users of a round
    quantile: float = 0.5  # share of the users that shall be within the bound
    lr: float = 0.2  # of the bound's logarithm

    def __post_init__(self) -> None:
        positive("bit_noise", self.bit_noise)
        positive("lr", self.lr)
        if not 0 <= self.quantile <= 1:
            raise InputError(f"quantile is {self.quantile}, and must lie between 0 and 1")


def start(bound: float) -> State:
    """The memory of an adaptive bound before the first round; public, since every move of it is paid for."""
    return {"bound": torch.tensor(positive("clip bound", bound), dtype=torch.float64)}


def adaptive_sum_and_noise(memory: State, releases: Iterable[Release], how: Adaptive, noise_multiplier: float, denominator: float,
                           noise: Noise, like: State, sampling: Sampling = "all",
                           rate: float = 1.0) -> tuple[State, Release, Event]:  # fmt: skip
    """`sum_and_noise` with the bound in ``memory``, and the bound of the next round: (memory, release, cost of updates and bits).

    Users clip by ``memory["bound"]`` and so does this; the noise is of this bound as well, never of the next one.
    """
    event, bound = booked(noise_multiplier, sampling, rate), float(memory["bound"])
    total, bits = summed(releases, bound, like)
    release = noised(total, standard(like, noise), split(noise_multiplier, how.bit_noise) * bound, denominator, like)
    bits += how.bit_noise * float(noise(torch.Size())) if noise_multiplier else 0.0
    return start(next_bound(bound, bits / denominator + 0.5, how.quantile, how.lr)), release, event


def _bits(release: Release) -> float:
    """Users within the bound less half of the users; 0 where the release does not say."""
    within = release.metrics.get(BIT, math.nan)
    return min(max(within, 0.0), release.users) - release.users / 2 if math.isfinite(within) else 0.0

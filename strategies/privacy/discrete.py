"""Whole numbers with whole-number noise: what a user puts into a secure sum, so that nobody learns more than the noised sum.

Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation",
arXiv 2102.06387, Theorem 1, in units of the grid (its gamma is ``step``), with c = bound / step:

    q = x / step, each number rounded up or down at random, again until |q|^2 <= S^2; sent: q + N_Z(0, s^2)
    S^2 = min(c^2 + D/4 + sqrt(2 ln(1/beta)) (c + sqrt(D)/2), (c + sqrt(D))^2)
    tau = 10 sum_{k=1}^{h-1} exp(-2 pi^2 s^2 k/(k+1)),    e = min(sqrt(S^2/(h s^2) + 2 tau D), S/(sqrt(h) s) + tau sqrt(D))

The sum is e^2/2-zCDP for one user's x against zero, whoever sees it, as long as h of the noises in it, the user's own among them, are
unknown to them. More noises are a further sum with something independent, and the modulus is a function of the sum: both are
post-processing.

Why, for whoever has not the paper at hand (its proposition 14 is the same two bounds):

1. The sum of N_Z(0, k s^2) and N_Z(0, s^2) at y is, by completing the square, a constant times N_Z(0, (k+1) s^2) times a sum over a
   shifted grid, which by Poisson summation is a constant times 1 +- r, r = 2 sum_j exp(-2 pi^2 s^2 j^2 k/(k+1)). Normalised, the
   logarithm of the ratio is at most log((1 + r)/(1 - r)), below 5 exp(-2 pi^2 s^2 k/(k+1)) for s >= 1. Adding further noise keeps a
   ratio's bound, so h noises are within exp(+-tau/2) of N_Z(0, h s^2), in each number.
2. So the privacy loss of a sum moved by q is that of N_Z(0, h s^2) and at most tau more for each number. The former is linear in the
   noise, and sums of discrete Gaussians are sub-Gaussian with their own variance: the Renyi divergence of order alpha is at most
   alpha |q|^2/(2 h s^2) + tau D. That is the first bound, since alpha > 1.
3. A ratio within exp(+-tau/2) in each of D numbers is D tau^2/8-zCDP, and roots of zCDP add up along a chain (Bun & Steinke,
   arXiv 1605.02065, proof of proposition 1.9): twice that, and |q|^2/(2 h s^2) between them. That is the second.

Noise is drawn exactly, in whole numbers: Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy",
arXiv 2004.00010, algorithms 1 to 3. Nothing is to be added to a delta for it.

Deviations. No rotation: a grid here has room for the worst case, a sum of vectors that each have all their norm in one number. s is a
whole number, rounded up. The Laplace of algorithm 3 has scale s and not floor(s) + 1, and its acceptances are one.

D: numbers of an update. N: draws.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from configs.errors import InputError
from strategies.privacy.events import Event
from strategies.tree import State

BETA = 1e-9  # a rounding is drawn again with at most this probability; small, since that is what biases it
TAIL = 1e-18  # probability that some number of one user's noise is beyond what the grid has room for
PRECISION = 0.01  # rounding moves an update by at most this share of the bound (root mean square)
LARGEST = 2**24  # standard deviation of a draw: products stay below 2**63, up to an event of probability exp(-181)

Bits = Callable[[int], Tensor]  # so many int64, uniform over 0 ... 2**63 - 1


@dataclass(frozen=True)
class Grid:
    """Fixed point for one sum. All users of the sum have the same one."""

    bound: float  # L2 norm that updates are clipped to
    size: int  # D
    users: int  # updates in the sum, at most
    modulus: int
    step: float = 1.0  # what one unit stands for; a power of two
    noise: int = 0  # standard deviation of one noise, in units: a user's, or a node's for all of its users
    honest: int = 0  # noises that are in the sum and known to nobody who looks at it, at least

    @property
    def reach(self) -> int:
        """S^2: no rounded update has a larger squared norm, in units."""
        c, root = self.bound / self.step, math.sqrt(self.size)
        likely = c**2 + self.size / 4 + math.sqrt(2 * math.log(1 / BETA)) * (c + root / 2)
        return math.floor(min(likely, (c + root) ** 2))

    @property
    def room(self) -> int:
        """The largest absolute value of one user's number for which no sum can wrap."""
        return (self.modulus // 2 - 1) // self.users


def fit(bound: float, size: int, users: int, noise: float = 0.0, honest: int = 0, modulus: int = 2**32) -> Grid:
    """Return the finest grid on which no sum of ``users`` vectors wraps, with a noise for each of them or for fewer.

    ``noise`` is the multiplier of the sum that `event` will show at least: the standard deviation of ``honest`` noises over S. Raises
    `InputError` where the modulus is too small for that at `PRECISION`.
    """
    if not (0 < bound < math.inf and size >= 1 and users >= 1 and 0 <= noise < math.inf and 4 <= modulus <= 2**32):
        raise InputError(f"no grid has bound {bound}, size {size}, users {users}, noise {noise}, modulus {modulus}")
    if noise and not 1 <= honest <= users:
        raise InputError(f"honest must be between 1 and the {users} users for noise, and is {honest}")
    coarsest = 2 * PRECISION * bound / math.sqrt(size)
    plain = Grid(bound, size, users, modulus, honest=honest)
    step = 2.0 ** math.floor(math.log2(bound / modulus))
    while step <= coarsest:
        grid = replace(plain, step=step)
        grid = replace(grid, noise=math.ceil(noise * math.sqrt(grid.reach / honest)) if noise else 0)
        while event(grid).noise < noise:  # what sums of discrete Gaussians lack to be one
            grid = replace(grid, noise=grid.noise + 1)
        if grid.noise <= LARGEST and math.sqrt(grid.reach) + _tail(grid) <= grid.room:
            return grid
        step *= 2
    raise InputError(f"a modulus of {modulus} is too small for {users} users' updates of {size} numbers with noise {noise}")


def quantize(update: State, grid: Grid, bits: Bits | None = None) -> Tensor:
    """Round an update to the grid at random, without bias: int64 D, tensors in the order of their names.

    Its squared norm is at most ``grid.reach``, always; a larger update is scaled down to the bound first. ``bits`` are by default the
    operating system's. Raises `InputError` for another size, and for numbers that are none.
    """
    x_D = torch.cat([update[name].detach().cpu().double().flatten() for name in sorted(update)] or [torch.empty(0)])
    if x_D.numel() != grid.size:
        raise InputError(f"an update has {x_D.numel()} numbers, and the grid is for {grid.size}")
    norm = float(x_D.norm())
    if not math.isfinite(norm):
        raise InputError("an update holds a number that is not finite")
    scaled_D = x_D * min(1.0, grid.bound / norm if norm else 1.0) / grid.step
    while True:
        q_D = _round(scaled_D, bits or entropy)
        if int(q_D.square().sum()) <= grid.reach:
            return q_D


def noised(q_D: Tensor, grid: Grid, bits: Bits | None = None, users: int = 1) -> Tensor:
    """Add one noise, to one user's numbers or to the sum of so many.

    Raises `OverflowError` where the result could make a sum wrap, which happens with probability `TAIL`.
    """
    sent_D = q_D + gaussian(q_D.numel(), grid.noise, bits) if grid.noise else q_D
    if sent_D.numel() and int(sent_D.abs().max()) > grid.room * users:
        raise OverflowError("a noised number has no room on its grid")
    return sent_D


def restore(sum_D: Tensor, grid: Grid, like: State) -> State:
    """The sum of updates, float32 under the names and shapes of ``like``, out of a sum of int64 D, modulo ``grid.modulus`` or not."""
    half = grid.modulus // 2
    values_D = (torch.remainder(sum_D + half, grid.modulus) - half).double() * grid.step
    names = sorted(like)
    parts = values_D.split([like[name].numel() for name in names])
    return {name: part.reshape(like[name].shape).float() for name, part in zip(names, parts, strict=True)}


def event(grid: Grid) -> Event:
    """What one sum costs one user, with no noise counted but that of ``grid.honest`` users."""
    if not grid.noise:
        return Event(0.0, kind="concentrated")
    h, s = grid.honest, grid.noise
    tau = inflation(s, h)
    ratio = math.sqrt(grid.reach / h) / s
    return Event(1 / min(math.sqrt(ratio**2 + 2 * tau * grid.size), ratio + tau * math.sqrt(grid.size)), kind="concentrated")


def inflation(noise: int, count: int) -> float:
    """The theorem's tau: twice what a logarithm of probabilities of so many noises' sum is beside that of one discrete Gaussian."""
    return 10 * math.fsum(math.exp(-2 * (math.pi * noise) ** 2 * k / (k + 1)) for k in range(1, count))


def unknown_noises(threshold: int, colluding: int) -> int:
    """How many noises `Grid.honest` may count on in a sum of at least ``threshold``, where so many parties tell theirs.

    Raises `InputError` where that is none.
    """
    if threshold <= colluding:
        raise InputError(
            f"threshold must be above the {colluding} parties that may collude, as their noise hides nothing, and is {threshold}"
        )
    return threshold - colluding


# ---------------------------------------------------------------------- draws
def entropy(count: int) -> Tensor:
    """Uniform bits from the operating system: the source for noise that protects somebody."""
    return torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64) & (2**63 - 1) if count else torch.empty(0).long()


def keyed(generator: torch.Generator) -> Bits:
    """Uniform bits that whoever knows the key can draw again: for simulations and tests."""
    return lambda count: torch.empty(count, dtype=torch.int64).random_(generator=generator)


def gaussian(count: int, sigma: int, bits: Bits | None = None) -> Tensor:
    """Exact draws from N_Z(0, sigma^2), int64 N: P(y) ~ exp(-y^2 / (2 sigma^2)) over all whole y. Sigma is whole, 1 to `LARGEST`."""
    if not (isinstance(sigma, int) and 1 <= sigma <= LARGEST):
        raise InputError(f"the standard deviation of discrete noise must be a whole number from 1 to {LARGEST}, and is {sigma}")
    bits = bits or entropy
    found_N, open_ = torch.empty(count, dtype=torch.int64), torch.arange(count)
    while len(open_):
        y, kept = _try(len(open_), sigma, bits)
        found_N[open_[kept]] = y[kept]
        open_ = open_[~kept]
    return found_N


def _try(count: int, s: int, bits: Bits) -> tuple[Tensor, Tensor]:
    """Candidates y = +-(u + s v), u uniform below s, P(v) ~ exp(-v); kept with probability exp(-u/s - (|y| - s)^2 / (2 s^2))."""
    u, v = _below(s, count, bits), _streak(count, bits)
    y = u + s * v
    power, unit = 2 * s * u + (y - s).square(), 2 * s * s
    kept = (_streak(count, bits) >= power // unit) & _coin(power % unit, unit, bits)
    minus = _below(2, count, bits) == 1
    return torch.where(minus, -y, y), kept & ~(minus & (y == 0))


def _coin(part_N: Tensor, whole: int, bits: Bits) -> Tensor:
    """True with probability exp(-part / whole), 0 <= part <= whole: algorithm 1."""
    odd_N, open_, k = torch.ones(len(part_N), dtype=torch.bool), torch.arange(len(part_N)), 1
    while len(open_):
        open_ = open_[_below(k * whole, len(open_), bits) < part_N[open_]]
        odd_N[open_] = ~odd_N[open_]
        k += 1
    return odd_N


def _streak(count: int, bits: Bits) -> Tensor:
    """How often in a row a coin of probability exp(-1) shows heads."""
    length_N, open_ = torch.zeros(count, dtype=torch.int64), torch.arange(count)
    while len(open_):
        open_ = open_[_coin(torch.ones(len(open_), dtype=torch.int64), 1, bits)]
        length_N[open_] += 1
    return length_N


def _below(end: int, count: int, bits: Bits) -> Tensor:
    """Uniform over 0 ... end - 1, without the bias of a remainder."""
    drawn_N, last = bits(count), 2**63 - 2**63 % end - 1
    while len(again := (drawn_N > last).nonzero().flatten()):
        drawn_N[again] = bits(len(again))
    return drawn_N % end


def _round(scaled_D: Tensor, bits: Bits) -> Tensor:
    low_D = scaled_D.floor()
    return low_D.long() + ((bits(scaled_D.numel()) >> 10) * 2.0**-53 < scaled_D - low_D)


def _tail(grid: Grid) -> float:
    """No number of one user's noise is larger, but for probability `TAIL`: discrete Gaussians are sub-Gaussian with their own sigma."""
    return grid.noise * math.sqrt(2 * math.log(2 * grid.size / TAIL))

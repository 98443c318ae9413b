"""Bounding what one user can add to a sum, and finding the bound.

The bound follows Andrew, Thakkar, McMahan & Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021,
arXiv 1905.03871, algorithm 1: it moves until a quantile gamma of the users' norms lies below it,

    b_k = 1[norm_k <= C],    b = (sum_k (b_k - 1/2) + N(0, sigma_b^2)) / m + 1/2,    C <- C exp(-eta (b - gamma))

The bits are released too. A user moves their sum by at most 1/2, and bits and updates together cost what one Gaussian of noise
multiplier z costs, where (theorem 1)

    z^-2 = z_delta^-2 + (2 sigma_b)^-2
"""

import math

import torch
from torch import Tensor

from configs.errors import InputError
from strategies.tree import State, norm


def clip(update: State, bound: float) -> tuple[State, float]:
    """Scale the jointly flattened update down to an L2 norm of at most ``bound``: (update, norm before).

    | update | result |
    |---|---|
    | norm <= bound, zeros included | itself, bit for bit |
    | norm > bound | its direction; ``tree.norm`` of the result is <= bound in float64, rounding to the update's dtype included |
    | some entry, or the norm, is not finite | zeros: it neither leaks nor poisons a sum |
    """
    positive("clip bound", bound)
    before = norm(update)
    if before <= bound:
        return update, before
    if not math.isfinite(before):
        return {name: torch.zeros_like(value) for name, value in update.items()}, before
    scale = bound / before * (1 - 2.0**-40)  # less than the bound by more than float64 errs in a sum of squares
    return {name: _towards_zero(value.double() * scale, value.dtype) for name, value in update.items()}, before


def unclipped(before: float, bound: float) -> bool:
    """The bit b_k of a user whose update had this norm; a norm that is not finite was clipped."""
    return before <= bound


def next_bound(bound: float, noised_fraction: float, quantile: float, lr: float) -> float:
    """C exp(-eta (b - gamma)): up where fewer users than the quantile lie below the bound, down where more do."""
    return bound * math.exp(-lr * (noised_fraction - quantile))


def split(noise_multiplier: float, bit_noise: float) -> float:
    """z_delta, the updates' noise multiplier, where all costs z and the sum of bits has noise of standard deviation sigma_b.

    Without noise (z = 0) there is none to split. Raises `InputError` where the bits alone cost more than z.
    """
    if noise_multiplier == 0:
        return 0.0
    if not 2 * bit_noise > noise_multiplier:
        raise InputError(f"bit_noise is {bit_noise}, and must be more than half of the noise multiplier {noise_multiplier}")
    return (noise_multiplier**-2 - (2 * bit_noise) ** -2) ** -0.5


def joint(update_multiplier: float, bit_noise: float) -> float:
    """z, what z_delta and sigma_b cost together: undoes `split`."""
    return (update_multiplier**-2 + (2 * bit_noise) ** -2) ** -0.5


def positive(field: str, value: float) -> float:
    """The value, where it is a finite number above 0; else `InputError` names the field."""
    if not 0 < value < math.inf:
        raise InputError(f"{field} is {value}, and must be a finite number above 0")
    return value


def _towards_zero(exact: Tensor, dtype: torch.dtype) -> Tensor:
    near = exact.to(dtype)
    return torch.where(near.double().abs() > exact.abs(), torch.nextafter(near, torch.zeros_like(near)), near)

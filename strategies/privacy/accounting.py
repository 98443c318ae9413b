"""What costs add up to: the epsilon of a history of events, and how much noise, or how many steps, a target epsilon leaves.

No answer is smaller than the truth. In one history the whole of it is accounted in one way:

    any ``fixed`` sampling     RDP under replace-one (Wang, Balle & Kasiviswanathan, arXiv 1808.00087, theorem 27)
    any ``concentrated`` kind  RDP: alpha / (2 noise^2) a step
    Gaussian, everybody        the closed form of `gaussian`, where PLD or PRV is asked for: they only approach it
    otherwise                  what is asked for: PLD, PRV (the upper end of its interval; Gopi et al., arXiv 2106.02848) or RDP

Neighbours: zero-out, except with ``fixed`` sampling. Replacing one unit moves a sum by up to 2 S, and an event's noise is its ratio to
S: there every noise counts half. For a concentrated step that is a group of two (Bun & Steinke, arXiv 1605.02065, proposition 1.9).

The libraries are imported where they are used: they take seconds, and most processes that import this file never ask them.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from scipy.optimize import brentq

from configs.errors import InputError, unknown
from strategies.privacy.events import Event, merged
from strategies.privacy.gaussian import Floats, epsilon_for, mu_for

T = TypeVar("T")
ACCOUNTANTS = ("pld", "prv", "rdp")
ORDERS = np.array([1 + x / 10 for x in range(1, 100)] + [*range(11, 65), 80, 96, 128, 256, 512, 1024], dtype=np.float64)
SPARSE = ORDERS[
    (ORDERS < 20) | np.isin(ORDERS, (24, 32, 48, 64, 128, 512, 1024))
]  # without replacement, an order takes its square in time
LARGEST_MU = 100.0  # beyond it (epsilon in the thousands) sampling counts for nothing, and RDP's bound will do
LARGEST_PRV = 25.0, 100_000  # mu, steps: beyond either, PRV overflows or takes gigabytes; PLD answers instead
LARGEST_NOISE = 1e6  # beyond it RDP's sums lose their digits: counted as so much
ROUNDING = 2e-11  # what those sums may have lost below it, of one step's RDP
MOST_STEPS = 10**9
GRID = 1.001  # ratio of neighbouring noise factors
LARGEST_FACTOR = 1e4  # times what a central limit asks for, or what would do without a past: beyond it a budget counts as spent


class SpentError(InputError):
    """Nothing of a budget is left, however large the noise."""


def unless_spent(plan: Callable[[], T]) -> T | None:
    """What is planned, or None where nothing of the budget is left."""
    try:
        return plan()
    except SpentError:
        return None


def check(accountant: str) -> None:
    """Raise `InputError` for an accountant that is unknown, or that is known to be wrong."""
    if accountant == "gdp":
        raise InputError("accountant 'gdp' is a central-limit approximation that under-estimates epsilon; use 'pld'")
    if accountant not in ACCOUNTANTS:
        raise unknown("accountant", accountant, ACCOUNTANTS)


def epsilon(events: Iterable[Event], delta: float, accountant: str = "pld") -> float:
    """Epsilon of a history at this delta: 0 for none, inf where a step has no noise."""
    return epsilons([tuple(events)], delta, accountant)[0]


def epsilons(histories: Sequence[tuple[Event, ...]], delta: float, accountant: str = "pld") -> list[float]:
    """Epsilon of each user's history; equal histories are accounted once, and closed forms all together."""
    check(accountant)
    _check(delta)
    folded = {history: _folded(history) for history in set(histories)}
    exact = {parts: 0.0 for parts in folded.values() if _exact(parts, accountant)}
    mu_N = np.array([_precision(parts[0]) ** 0.5 if parts else 0.0 for parts in exact])
    known = dict(zip(exact, epsilon_for(mu_N, delta).tolist(), strict=True))
    cost = {h: known[p] if p in known else _composed(p, delta, _method(p, accountant)) for h, p in folded.items()}
    return [cost[history] for history in histories]


def scaled(events: Iterable[Event], factor: float) -> tuple[Event, ...]:
    """The same events with every noise multiplied."""
    return tuple(replace(event, noise=event.noise * factor) for event in events)


def noise_factor(parts: Sequence[Event], epsilon: float, delta: float, accountant: str = "pld", spent: tuple[Event, ...] = ()) -> float:
    """The smallest factor, to 0.1 % and from above, that every noise of ``parts`` needs so that all costs at most ``epsilon``.

    All is ``parts`` and what is ``spent`` already. 0 where there is nothing to pay for. Raises `InputError` where a step has no noise
    to multiply or no noise is enough; `SpentError`, where that is so because of the past.
    """
    check(accountant)
    _check(delta, epsilon)
    return _factor(_folded(parts), _folded(spent), epsilon, delta, accountant)


def affordable(event: Event, spent: tuple[Event, ...], epsilon: float, delta: float, accountant: str = "pld") -> int:
    """How many steps of ``event`` fit into ``epsilon`` after what is spent: 0 for none, at most `MOST_STEPS`."""
    check(accountant)
    _check(delta, epsilon)
    step = _rough(_folded([replace(event, steps=1)])) ** 2
    room = mu_for(epsilon, delta) ** 2 - _rough(_folded(spent)) ** 2
    guess = int(min(max(room, 0.0) / step, MOST_STEPS)) if step else MOST_STEPS

    def cost(steps: int) -> float:
        return epsilons([(*spent, replace(event, steps=steps))], delta, accountant)[0] if steps <= MOST_STEPS else math.inf

    return max(_last(cost, epsilon, guess, 0, guess // 16 + 1), 0)


def _check(delta: float, epsilon: float = 1.0) -> None:
    if not 0 < delta < 1:
        raise InputError(f"delta must be between 0 and 1, not {delta}")
    if not 0 < epsilon < math.inf:
        raise InputError(f"epsilon must be above 0 and finite, not {epsilon}")


def _folded(history: Iterable[Event]) -> tuple[Event, ...]:
    """An equal history in a form of its own: one event for all steps that everybody takes part in, and the others merged and sorted."""
    events = [event for event in history if event.steps and event.noise < math.inf]
    whole = [e for e in events if e.sampling == "all" or (e.sampling == "poisson" and e.rate == 1)]
    rest = merged(e for e in events if e.sampling == "fixed" or (e.sampling == "poisson" and e.rate < 1))
    if any(e.kind == "concentrated" for e in rest):
        raise ValueError("sampling does not amplify a concentrated event: nothing is known that says by how much")
    if len({e.sampling for e in rest}) > 1:
        raise ValueError("poisson and fixed sampling in one history have different neighbours: no epsilon covers both")
    kind = "concentrated" if any(e.kind == "concentrated" for e in whole) else "gaussian"
    precision = math.fsum(_precision(e) for e in whole)
    return (Event(precision**-0.5 if precision < math.inf else 0.0, kind=kind), *rest) if precision else rest


def _precision(event: Event) -> float:
    """What the steps add to mu^2 if everybody takes part; inf without noise."""
    inverse = 1 / event.noise if event.noise else math.inf
    return event.steps * (inverse * inverse)


def _method(parts: tuple[Event, ...], accountant: str) -> str:
    if any(part.sampling == "fixed" for part in parts):
        return "fixed"
    return "rdp" if any(part.kind == "concentrated" for part in parts) else accountant


def _exact(parts: tuple[Event, ...], accountant: str) -> bool:
    return not parts or (len(parts) == 1 and parts[0].sampling == "all" and _method(parts, accountant) != "rdp")


@lru_cache(maxsize=1 << 16)
def _composed(parts: tuple[Event, ...], delta: float, method: str) -> float:
    """Epsilon of folded events. Sampling never adds to a cost: where the numbers leave what can be computed, it is left out."""
    if _rough(parts) <= LARGEST_MU:
        return float(METHODS[method](parts, delta))
    whole = sum(_precision(part) for part in parts) * (4 if method == "fixed" else 1)
    return _converted(ORDERS * (whole / 2), delta)


def _pld(parts: tuple[Event, ...], delta: float) -> float:
    """Privacy loss distributions, on a grid that rounds up; zero-out costs what add-or-remove costs."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, _interval(parts))
    for part in parts:
        gaussian = GaussianDpEvent(part.noise)
        accountant.compose(gaussian if part.sampling == "all" else PoissonSampledDpEvent(part.rate, gaussian), part.steps)
    return accountant.get_epsilon(delta)


def _interval(parts: tuple[Event, ...]) -> float:
    """The grid: rounding adds at most interval^2 / 4 of variance a step; altogether some 0.02 % of the history's own, about mu^2."""
    mu = _rough(parts)
    return float(np.clip(0.028 * mu / sum(part.steps for part in parts) ** 0.5, 2e-5, 1e-3 * max(1.0, mu**2 / 100)))


def _prv(parts: tuple[Event, ...], delta: float) -> float:
    """Privacy loss random variables: the upper end of an interval of epsilons, whose width is 0.01 or 0.1 % or so."""
    mu = _rough(parts)
    if mu > LARGEST_PRV[0] or sum(part.steps for part in parts) > LARGEST_PRV[1]:
        return _pld(parts, delta)
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(part.noise, part.rate, part.steps) for part in parts]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # its own RDP, which only sizes the grid, asks for more orders
        return accountant.get_epsilon(delta, eps_error=0.01 * max(1.0, mu**2 / 20))


def _rdp(parts: tuple[Event, ...], delta: float) -> float:
    return _converted(np.sum([part.steps * _curve(part.noise, part.rate) for part in parts], axis=0), delta)


@lru_cache(maxsize=1 << 12)
def _curve(noise: float, rate: float) -> Floats:
    """RDP of one Poisson-sampled step at all `ORDERS` (Mironov, Talwar & Zhang, arXiv 1908.10530, section 3.3)."""
    from opacus.accountants.analysis.rdp import compute_rdp

    curve = compute_rdp(q=rate, noise_multiplier=min(noise, LARGEST_NOISE), steps=1, orders=ORDERS.tolist())
    return np.maximum(curve, 0.0) + ROUNDING


def _converted(curve: Floats, delta: float) -> float:
    """Epsilon of an RDP curve over `ORDERS` (Canonne, Kamath & Steinke, arXiv 2004.00010, proposition 12)."""
    return max(float(np.nanmin(curve + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1))), 0.0)


def _fixed(parts: tuple[Event, ...], delta: float) -> float:
    """RDP under replace-one, every noise halved: the accountant's is the ratio to 2 S."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(SPARSE.tolist(), NeighboringRelation.REPLACE_ONE)
    for part in parts:
        gaussian = GaussianDpEvent(min(part.noise / 2, LARGEST_NOISE))
        taken, units = part.rate.as_integer_ratio()
        sampled = SampledWithoutReplacementDpEvent(units, taken, gaussian)
        accountant.compose(gaussian if part.sampling == "all" else sampled, part.steps)
    return accountant.get_epsilon(delta)


METHODS: dict[str, Callable[[tuple[Event, ...], float], float]] = {"pld": _pld, "prv": _prv, "rdp": _rdp, "fixed": _fixed}


def _rough(parts: Iterable[Event]) -> float:
    """The mu of a central limit (Bu et al., arXiv 1911.11607), at most that without sampling: where a search begins, never a claim."""
    total = 0.0
    for part in parts:
        one = _precision(replace(part, steps=1)) * (4 if part.sampling == "fixed" else 1)
        total += part.steps * (one if part.sampling == "all" else min(one, part.rate**2 * math.expm1(min(one, 700.0))))
    return total**0.5


@lru_cache(maxsize=1 << 12)
def _factor(parts: tuple[Event, ...], spent: tuple[Event, ...], target: float, delta: float, accountant: str) -> float:
    if not parts:
        return 0.0
    if not all(part.noise for part in parts):
        raise InputError("noise must be above 0: no factor makes noise out of none")
    mu, exact = mu_for(target, delta) * (1 - 1e-9), _exact(_folded((*spent, *parts)), accountant)
    room = mu**2 - _rough(spent) ** 2  # of mu^2: exact without sampling, else a guess
    over = room * LARGEST_FACTOR**2 < mu**2 if exact else epsilons([spent], delta, accountant)[0] > target
    if spent and over:
        raise _spent(spent, target, delta, accountant)
    if exact:
        return _rough(parts) / room**0.5
    left = max(room, mu**2 / LARGEST_FACTOR) ** 0.5
    start = math.exp(float(brentq(lambda x: _rough(scaled(parts, math.exp(x))) - left, -50.0, 50.0)))  # pyright: ignore[reportArgumentType]

    def cost(power: int) -> float:
        return epsilons([(*spent, *scaled(parts, start / GRID**power))], delta, accountant)[0]

    lowest = -round(math.log(LARGEST_FACTOR) / math.log(GRID))
    power = _last(cost, target, 0, lowest, 64)
    if power < lowest and spent:
        raise _spent(spent, target, delta, accountant)
    if power < lowest:
        raise InputError(f"epsilon {target} is below what '{accountant}' can show for any noise; ask for more, or use 'pld'")
    return start / GRID**power


def _spent(spent: tuple[Event, ...], target: float, delta: float, accountant: str) -> SpentError:
    cost = epsilons([spent], delta, accountant)[0]
    return SpentError(
        f"of epsilon {target:g} the ledger has spent {cost:.4g}, and nothing is left; set a larger epsilon, or another ledger"
    )


def _last(cost: Callable[[int], float], limit: float, start: int, lowest: int, stride: int) -> int:
    """The last whole number from ``lowest`` on whose rising cost is within the limit, or the one before ``lowest``.

    Gallops from ``start`` until it is bracketed, then interpolates, and every third time halves.
    """
    low, high, costs, n = lowest - 1, None, {}, start
    while high is None or high - low > 1:
        costs[n] = cost(n)
        low, high = (n, high) if costs[n] <= limit else (low, n)
        if high is None:
            n, stride = low + stride, 2 * stride
        elif low not in costs:
            n, stride = max(high - stride, lowest), 2 * stride
        else:
            share = 0.5 if len(costs) % 3 == 0 or costs[high] == math.inf else (limit - costs[low]) / (costs[high] - costs[low])
            n = min(max(low + int(share * (high - low)), low + 1), high - 1)
    return low

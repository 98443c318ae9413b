"""Who stays within a budget, for thousands of histories at once: most are settled by a bound that is cheap for all of them together.

A Poisson-sampled Gaussian step of rate q and noise z has at a whole order a the Renyi divergence (Mironov, Talwar & Zhang, arXiv
1908.10530, section 3.3)

    log( sum_k C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 z^2)) ) / (a - 1)

The epsilon of their sum is never below the truth, so who is within by it is within. Only those who are not go to an accountant.

Shape suffixes: E different steps, A orders, U users.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from scipy.special import gammaln, logsumexp

from strategies.privacy.accounting import epsilons
from strategies.privacy.events import Event
from strategies.privacy.gaussian import Floats

ORDERS = np.array([*range(2, 13), 14, 16, 20, 24, 32, 48, 64])


def within(histories: Sequence[tuple[Event, ...]], epsilon: float, delta: float, accountant: str = "pld") -> list[bool]:
    """Whether each history costs at most ``epsilon`` at this delta."""
    sampled = [k for k, history in enumerate(histories) if _sampled(history)]
    rough_U = bounds([histories[k] for k in sampled], delta) if sampled else np.empty(0)
    settled = {k for k, rough in zip(sampled, rough_U.tolist(), strict=False) if rough <= epsilon}
    rest = [k for k in range(len(histories)) if k not in settled]
    over = {k for k, cost in zip(rest, epsilons([histories[k] for k in rest], delta, accountant), strict=True) if not cost <= epsilon}
    return [k not in over for k in range(len(histories))]


def bounds(histories: Sequence[tuple[Event, ...]], delta: float) -> Floats:
    """An upper bound of each history's epsilon. Its events are Gaussian, with noise, and sampled by coins or not at all."""
    events = list(chain.from_iterable(histories))
    index = {step: n for n, step in enumerate(dict.fromkeys((e.noise, e.rate) for e in events))}
    curve_EA = _curves(*np.array([*index]).T)
    total_UA = np.zeros((len(histories), len(ORDERS)))
    owner = np.repeat(np.arange(len(histories)), [len(x) for x in histories])
    steps = np.array([[e.steps] for e in events])
    np.add.at(total_UA, owner, steps * curve_EA[[index[e.noise, e.rate] for e in events]])
    return np.maximum((total_UA + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)).min(1), 0.0)


def _curves(noise_E: Floats, rate_E: Floats) -> Floats:
    found = [_whole(noise_E, rate_E, order) for order in ORDERS.tolist()]
    return np.where((rate_E < 1)[:, None], np.stack(found, 1), ORDERS / (2 * noise_E[:, None] ** 2))


def _whole(noise_E: Floats, rate_E: Floats, order: int) -> Floats:
    k = np.arange(order + 1)
    q = np.minimum(rate_E, 1 - 1e-12)[:, None]  # a rate of 1 has a form of its own
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = choose + (order - k) * np.log1p(-q) + k * np.log(q) + (k * k - k) / (2 * noise_E[:, None] ** 2)
    return np.maximum(logsumexp(terms, axis=1), 0.0) / (order - 1)


def _sampled(history: tuple[Event, ...]) -> bool:
    plain = all(e.kind == "gaussian" and e.noise > 1e-3 and (e.sampling == "poisson" or e.rate == 1) for e in history)
    return plain and any(e.rate < 1 for e in history) and all(e.sampling != "fixed" for e in history)

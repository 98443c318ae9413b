"""Whether a user's data has changed since what is private trained on it: detectors that decide who trains in a period.

A detector reads x_n [n], nats, in order of time: of each new privacy unit, before anything trains on it, the loss under the user's own
model minus that under the shared one. Below 0 what is the user's own still helps. Each x is cut to [-clip, clip].

**paired**, one look at a period. With n units and noise N(0, 1),

    alarm  <=>  sum_i x_i + noise clip N(0, 1)  >  clip sqrt(2 ln(1 / alarm) (n + noise^2))

A cut x has at most the tails of a normal number of deviation clip (Hoeffding, JASA 1963), so where units are independent and cut x
have means of 0 or less, the own model being no worse, a period raises a false alarm with a probability of at most ``alarm``.
One unit changes the sum by at most clip: a look with noise is a Gaussian mechanism of that noise.

**page_hinkley**, over periods (Page, "Continuous Inspection Schemes", Biometrika 1954; Hinkley, Biometrika 1971),

    m_i = m_{i-1} + x_i - mean_i - tolerance,      alarm  <=>  m_i - min_{j <= i} m_j > threshold

with mean_i the mean of x_1 .. x_i, which begins at 0 with the weight of ``prior`` units; after an alarm all begins anew. Were the mean
known, N independent units would raise a false alarm with a probability of at most N exp(-2 tolerance threshold / clip^2) (Chernoff's
bound for each place where a rise may begin): 0.034 for N = 100 and the options as they are. It looks without noise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from configs.scenario import Scenario
from strategies.options import within
from strategies.privacy.events import Event
from strategies.registry import make

GROUP = "life.detector_options"
Seen = tuple[Tensor, bool]  # what is remembered then, and whether there is an alarm


class Detector(NamedTuple):
    """How a change is told. ``see`` is pure: (what is remembered [M], x_n, one standard normal number) -> `Seen`."""

    paper: str
    see: Callable[[Tensor, Tensor, float], Seen]
    memory: int = 0  # M, numbers that are remembered from period to period, all 0 at first
    noise: float = 0.0  # standard deviation of a look's noise, as a multiple of what one unit adds at most; 0: none


def paired(alarm: float = 0.05, clip: float = 0.25, noise: float = 0.0) -> Detector:
    """Test whether the own model is worse than the shared one on the new period."""
    within("alarm", alarm, 1e-9, 0.5, GROUP)
    within("clip", clip, 1e-3, 100.0, GROUP)
    within("noise", noise, 0.0, 1e6, GROUP)

    def see(memory_M: Tensor, x_n: Tensor, normal: float) -> Seen:
        total = float(cut(x_n, clip).sum()) + noise * clip * normal
        return memory_M, total > clip * math.sqrt(2 * math.log(1 / alarm) * (len(x_n) + noise**2))

    return Detector("Hoeffding 1963", see, noise=noise)


def page_hinkley(threshold: float = 5.0, tolerance: float = 0.05, clip: float = 0.25, prior: float = 20.0) -> Detector:
    """Follow how far the loss rises above its own mean, from period to period."""
    within("threshold", threshold, 1e-6, 1e6, GROUP)
    within("tolerance", tolerance, 0.0, 100.0, GROUP)
    within("clip", clip, 1e-3, 100.0, GROUP)
    within("prior", prior, 0.0, 1e6, GROUP)

    def see(memory_M: Tensor, x_n: Tensor, _normal: float) -> Seen:
        (count, mean, rise), lowest = memory_M.tolist(), 0.0  # the rise is counted from its lowest
        for x in cut(x_n, clip).tolist():
            count += 1
            mean += (x - mean) / (prior + count)
            rise += x - mean - tolerance
            lowest = min(lowest, rise)
            if rise - lowest > threshold:
                return torch.zeros_like(memory_M), True
        return memory_M.new_tensor([count, mean, rise - lowest]), False

    return Detector("Page 1954", see, 3)


DETECTORS: dict[str, Callable[..., Detector]] = {"paired": paired, "page_hinkley": page_hinkley}


def of(scenario: Scenario) -> Detector:
    """What a scenario names. Raises `InputError` for an unknown name, or an option that it has not or that means nothing."""
    return make("life.detector", scenario.life.detector, scenario.life.detector_options, DETECTORS, Detector)


def cut(x_n: Tensor, clip: float) -> Tensor:
    """Each value within the bound; what is no number says nothing."""
    return x_n.double().nan_to_num(0.0, clip, -clip).clamp(-clip, clip)


def look(scenario: Scenario) -> tuple[Event, ...]:
    """What a period's decision costs a user under guarantee E; () where there is none. The first period trains unasked."""
    asks = scenario.life.train == "drift" and scenario.life.period > 1 and scenario.privacy.of_examples
    return (Event(of(scenario).noise),) if asks else ()

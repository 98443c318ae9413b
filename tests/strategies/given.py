"""Adapters and releases out of nothing, for tests of aggregators."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from strategies.aggregators.scaffold import CONTROL
from strategies.base import Aggregator, Release, released
from strategies.lora import delta, pairs
from strategies.tree import State, weighted_mean

MODULES = ("base_model.model.layers.0.q_proj", "base_model.model.layers.1.down_proj")
ALONE = ("private/base_model.model.layers.1.up_proj.lora_A.weight", "private/base_model.model.layers.1.up_proj.mix.weight")
O, R, I = 5, 3, 8  # noqa: E741 - outputs, rank, inputs of a module
WEIGHTS = (1.0, 7.0, 2.5)


def shared(seed: int = 0) -> State:
    """An adapter with both factors away from zero; then an A without its B, and what is no factor, as scheme fedrep shares them."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"lora_A": (R, I), "lora_B": (O, R)}
    found = {f"{m}.{f}.weight": torch.randn(s, generator=draw) for m in MODULES for f, s in shapes.items()}
    return found | {name: torch.randn(R, R, generator=draw) for name in ALONE}


def begun(aggregator: Aggregator) -> State:
    """The same adapter as this aggregator's server has it: with what earlier rounds have made of the base, or of control variates."""
    draw = torch.Generator().manual_seed(77)
    changes = {f"{m}.lora_delta.weight": torch.randn(O, I, generator=draw) for m in MODULES}
    controls = {f"{CONTROL}/{n}": torch.randn(v.shape, generator=draw) for n, v in shared().items() if aggregator.controls}
    return shared() | {n: v for n, v in changes.items() if released(n, aggregator.carried)} | controls


def release(aggregator: Aggregator, update: State, weight: float, round_: int = 1, start: State | None = None) -> Release:
    """A node's release of an update: the round's factors only, with what is done to them at home, multiplied by the weight."""
    steered = {f"{CONTROL}/{n}": 0.3 - v for n, v in update.items() if aggregator.controls}
    sent = {n: v for n, v in (update | steered).items() if released(n, aggregator.factors(round_))}
    if aggregator.at_home:
        sent = aggregator.at_home(round_, begun(aggregator) if start is None else start, sent)
    return Release({n: v * weight for n, v in sent.items()}, weight, 1, {"tokens": 1.0})


def releases(aggregator: Aggregator, weights: Sequence[float] = WEIGHTS, scale: float = 1.0, round_: int = 1) -> list[Release]:
    """Users with different updates and weights."""
    return [release(aggregator, shared(10 + i), w * scale, round_) for i, w in enumerate(weights)]


def applied(aggregator: Aggregator, given: Iterable[Release], start: State | None = None) -> tuple[State, State]:
    """One round from the beginning: (memory, shared)."""
    start = begun(aggregator) if start is None else start
    return aggregator.apply(aggregator.init(start), start, rooted(given) if aggregator.rooted else given)


def rooted(given: Iterable[Release]) -> list[Release]:
    """The releases with one of the server's own users, who wants what the others want on average; not beside one that is there."""
    found = list(given)
    mean = weighted_mean((r.weight, r.update) for r in found)
    return found if any(r.root for r in found) else [*found, Release(mean, 1.0, root=True)]


def assert_close(a: State, b: State, tolerance: float = 1e-6) -> None:
    """Equal names, and values up to rounding."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=tolerance, rtol=tolerance)


def effect(state: State) -> State:
    """What an adapter does, however it is written: each module's product with its delta, and the rest as it is; no control variates."""
    state = {n: v for n, v in state.items() if not n.startswith(f"{CONTROL}/")}
    factors = pairs(state)
    alone = {n: v for n, v in state.items() if n not in {name for b, a in factors for name in (b, a, delta(b))}}
    return alone | {b: product(state, b, a) for b, a in factors}


def product(state: State, b: str, a: str) -> Tensor:
    """What one module gets: B A, and the delta where there is one."""
    return state[b] @ state[a] + state.get(delta(b), torch.zeros(()))


def after(start: State, given: Release) -> State:
    """Where a user ended, in float64."""
    return {n: v.double() + (given.update[n].double() / given.weight if n in given.update else 0.0) for n, v in start.items()}


def ideal(start: State, given: Sequence[Release]) -> dict[str, Tensor]:
    """The weighted mean of the users' products, by the name of B."""
    mass = sum(r.weight for r in given)
    ends = [(r.weight / mass, after(start, r)) for r in given]
    effective = [n for n in start if not n.startswith(f"{CONTROL}/")]
    return {b: sum(p * product(end, b, a) for p, end in ends) for b, a in pairs(effective)}  # type: ignore[misc]

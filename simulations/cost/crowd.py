"""An adapter and users' releases out of nothing, of any number and size, made one at a time.

O outputs, I inputs, R ranks of each module.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from strategies.aggregators.scaffold import CONTROL
from strategies.base import Aggregator, Release, released
from strategies.tree import State, generator, nbytes


class Shape(NamedTuple):
    """The modules that carry an adapter."""

    modules: int
    outputs: int
    inputs: int
    rank: int


def adapter(aggregator: Aggregator, shape: Shape) -> State:
    """A shared adapter as this aggregator's server has it, float32."""
    draw, (modules, outputs, inputs, rank) = generator("cost"), shape
    sizes = {"lora_B": (outputs, rank), "lora_A": (rank, inputs), "lora_delta": (outputs, inputs)}
    kinds = ("lora_B", "lora_A", *aggregator.carried)
    names = {f"x.{module}.{kind}.weight": sizes[kind] for module in range(modules) for kind in dict.fromkeys(kinds)}
    names |= {f"{CONTROL}/{name}": size for name, size in names.items() if aggregator.controls}
    return {name: torch.randn(size, generator=draw) for name, size in names.items()}


def releases(aggregator: Aggregator, shared: State, users: int) -> Iterator[Release]:
    """So many users' releases of a first round, each in memory of its own; the server's own user first, where one is asked for."""
    one, two = (_update(aggregator, shared, seed) for seed in (1, 2))
    for user in range(users + aggregator.rooted):
        turn = user * 0.61803398875 % 1
        update = {name: torch.lerp(one[name], two[name], turn) for name in one}
        yield Release(update, 1.0, root=bool(aggregator.rooted and not user))


def sized(aggregator: Aggregator, shape: Shape, size: int) -> Shape:
    """The shape with as many modules as make a release of about so many bytes."""
    each = nbytes(_update(aggregator, adapter(aggregator, shape._replace(modules=1)), 0))
    return shape._replace(modules=max(1, round(size / each)))


def _update(aggregator: Aggregator, shared: State, seed: int) -> State:
    draw, factors = generator("cost", seed), aggregator.factors(1)
    return {n: torch.randn(v.shape, generator=draw) / 10 for n, v in shared.items() if released(n, factors)}

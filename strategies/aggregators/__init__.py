"""The registry of aggregators: one file and one line each."""

import inspect
from collections.abc import Callable
from typing import Any

from configs.errors import unknown
from strategies.aggregators.fedadam import fedadam
from strategies.aggregators.fedavgm import fedavgm
from strategies.aggregators.fedit import fedit
from strategies.aggregators.ffa import ffa
from strategies.base import Aggregator

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "fedadam": fedadam,
    "fedavgm": fedavgm,
    "fedit": fedit,
    "ffa": ffa,
}


FLOWER = "flower."  # "flower.FedYogi": one of Flower's own strategies, which the server runs


def build(name: str, options: dict[str, float]) -> Aggregator:
    """Look an aggregator up by name and give it its options. Raises `InputError` for an unknown name or option."""
    if name.startswith(FLOWER):
        return of_flower(_not_here, _not_here)
    if name not in AGGREGATORS:
        raise unknown("aggregator", name, AGGREGATORS)
    known = inspect.signature(AGGREGATORS[name]).parameters
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    return AGGREGATORS[name](**options)


def of_flower(init: Callable[..., Any], apply: Callable[..., Any]) -> Aggregator:
    """Describe a strategy of Flower's: both factors, every user's own tensors. `server.aggregation` knows how to run it."""
    return Aggregator(init, apply, lambda _: ("lora_A", "lora_B"), linear=False, individual=True, stateful=True, paper="flwr")


def _not_here(*_: object) -> Any:
    raise RuntimeError("a strategy of Flower's is run by server.aggregation.build, not by this description of it")

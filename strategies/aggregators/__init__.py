"""The registry of aggregators: one file and one line each."""

from collections.abc import Callable

from configs.errors import InputError, unknown
from strategies.aggregators.fedavgm import fedavgm
from strategies.aggregators.fedit import fedit
from strategies.aggregators.ffa import ffa
from strategies.base import Aggregator

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "fedavgm": fedavgm,
    "fedit": fedit,
    "ffa": ffa,
}


def build(name: str, options: dict[str, float]) -> Aggregator:
    """Look an aggregator up by name and give it its options. Raises `InputError` for an unknown name or option."""
    if name not in AGGREGATORS:
        raise unknown("aggregator", name, AGGREGATORS)
    try:
        return AGGREGATORS[name](**options)
    except TypeError as error:
        raise InputError(f"aggregator_options of '{name}': {str(error).partition('()')[2].strip()}") from None

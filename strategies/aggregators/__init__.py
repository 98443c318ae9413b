"""The registry of aggregators: one file and one line each."""

from collections.abc import Callable, Mapping
from typing import Any

from strategies.aggregators.fedadagrad import fedadagrad
from strategies.aggregators.fedadam import fedadam
from strategies.aggregators.fedask import fedask
from strategies.aggregators.fedavgm import fedavgm
from strategies.aggregators.fedex import fedex
from strategies.aggregators.fedit import fedit
from strategies.aggregators.fedmomentum import fedmomentum
from strategies.aggregators.fedprox import fedprox
from strategies.aggregators.fedrot import fedrot
from strategies.aggregators.fedsvd import fedsvd
from strategies.aggregators.fedyogi import fedyogi
from strategies.aggregators.ffa import ffa
from strategies.aggregators.flexlora import flexlora
from strategies.aggregators.flora import flora
from strategies.aggregators.fltrust import fltrust
from strategies.aggregators.frlora import frlora
from strategies.aggregators.geometric_median import geometric_median
from strategies.aggregators.hetlora import hetlora
from strategies.aggregators.krum import krum
from strategies.aggregators.lora_a2 import lora_a2
from strategies.aggregators.lora_fair import lora_fair
from strategies.aggregators.median import median
from strategies.aggregators.multi_krum import multi_krum
from strategies.aggregators.norm_clip import norm_clip
from strategies.aggregators.rolora import rolora
from strategies.aggregators.scaffold import scaffold
from strategies.aggregators.task_arithmetic import task_arithmetic
from strategies.aggregators.ties import ties
from strategies.aggregators.trimmed_mean import trimmed_mean
from strategies.base import Aggregator
from strategies.registry import make

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "fedadagrad": fedadagrad,
    "fedadam": fedadam,
    "fedask": fedask,
    "fedavgm": fedavgm,
    "fedex": fedex,
    "fedit": fedit,
    "fedmomentum": fedmomentum,
    "fedprox": fedprox,
    "fedrot": fedrot,
    "fedsvd": fedsvd,
    "fedyogi": fedyogi,
    "ffa": ffa,
    "flexlora": flexlora,
    "flora": flora,
    "fltrust": fltrust,
    "frlora": frlora,
    "geometric_median": geometric_median,
    "hetlora": hetlora,
    "krum": krum,
    "lora_a2": lora_a2,
    "lora_fair": lora_fair,
    "median": median,
    "multi_krum": multi_krum,
    "norm_clip": norm_clip,
    "rolora": rolora,
    "scaffold": scaffold,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "trimmed_mean": trimmed_mean,
}


FLOWER = "flower."  # "flower.FedYogi": one of Flower's own strategies, which the server runs


def build(name: str, options: Mapping[str, float]) -> Aggregator:
    """Look an aggregator up by name and give it its options; ``package.module.function`` names one that is not registered.

    Raises `InputError` for an unknown name or option.
    """
    if name.startswith(FLOWER):
        return of_flower(_not_here, _not_here)
    return make("aggregator", name, options, AGGREGATORS, Aggregator)


def of_flower(init: Callable[..., Any], apply: Callable[..., Any]) -> Aggregator:
    """Describe a strategy of Flower's: both factors, every user's own tensors. `server.aggregation` knows how to run it."""
    return Aggregator(init, apply, lambda _: ("lora_A", "lora_B"), linear=False, individual=True, stateful=True, paper="flwr")


def _not_here(*_: object) -> Any:
    raise RuntimeError("a strategy of Flower's is run by server.aggregation.build, not by this description of it")

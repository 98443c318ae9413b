"""What PEFT merges of several LoRAs, and what an aggregator makes of the same ones, is one product where both are defined."""

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from strategies import aggregators
from strategies.base import Release, released
from strategies.tree import State
from tests.strategies.given import WEIGHTS, product

SHAPES = [(5, 3, 8), (6, 3, 6)]  # outputs, rank, inputs
B, A, DELTA = (f"base_model.model.0.{factor}.weight" for factor in ("lora_B", "lora_A", "lora_delta"))


def adapter(shape: tuple[int, int, int], seed: int) -> State:
    """Factors away from zero, and no change of the base yet."""
    (outputs, rank, inputs), draw = shape, torch.Generator().manual_seed(seed)
    factors = {B: torch.randn(outputs, rank, generator=draw), A: torch.randn(rank, inputs, generator=draw)}
    return factors | {DELTA: torch.zeros(outputs, inputs)}


def merged_by_peft(shape: tuple[int, int, int], users: Sequence[State], how: str) -> Tensor:
    """The change of a linear module after PEFT's own merge, scale 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model
    (outputs, rank, inputs), config = shape, {"r": shape[1], "lora_alpha": shape[1], "target_modules": ["0"]}
    model: Any = get_peft_model(torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=False)), LoraConfig(**config))  # type: ignore[arg-type]
    layer = model.base_model.model[0]
    for index, user in enumerate(users):
        model.add_adapter(f"user{index}", LoraConfig(**config))  # type: ignore[arg-type]
        layer.lora_A[f"user{index}"].weight.data = user[A]
        layer.lora_B[f"user{index}"].weight.data = user[B]
    share = [w / sum(WEIGHTS) for w in WEIGHTS]
    options = {"svd_rank": rank} if how == "svd" else {}
    model.add_weighted_adapter([f"user{i}" for i in range(len(users))], share, "merged", combination_type=how, **options)
    return layer.get_delta_weight("merged").detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "how"), [("flora", "cat"), ("fedex", "cat"), ("fedmomentum", "cat"), ("flexlora", "svd"),
                                           ("fedask", "svd"), ("fedsvd", "svd"), ("ffa", "cat")])  # fmt: skip
def test_an_aggregate_is_pefts_own_merge(name: str, how: str, shape: tuple[int, int, int]) -> None:
    aggregator, start = aggregators.build(name, {"over": 9} if name == "fedask" else {}), adapter(shape, 0)
    ends = [{n: v if released(n, aggregator.factors(1)) else start[n] for n, v in adapter(shape, 1 + k).items()} for k in range(3)]
    trained = [n for n in start if released(n, aggregator.factors(1))]
    given = [Release({n: w * (end[n] - start[n]) for n in trained}, w) for w, end in zip(WEIGHTS, ends, strict=True)]
    found = aggregator.apply(aggregator.init(start), start, given)[1]
    torch.testing.assert_close(product(found, B, A), merged_by_peft(shape, ends, how), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(product(start, B, A), product(found, B, A), atol=0.1)

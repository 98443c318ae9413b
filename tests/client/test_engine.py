"""Users trained side by side come out as if each had been trained alone."""

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from client.adapters.layout import layout
from client.base import Base
from client.data.types import Encoded
from client.tower import Tower
from client.train import Learner, Trainer
from configs.scenario import Adapter, Engine, Local
from strategies.tree import State


@pytest.fixture
def base() -> Iterator[Base]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    yield Base(LlamaForCausalLM(config).requires_grad_(False).eval(), None, "tiny")


def examples(user: int, count: int) -> list[Encoded]:
    g = torch.Generator().manual_seed(user)
    return [Encoded(torch.randint(3, 64, (5 + (user + i) % 4,), generator=g), 2, -1, i) for i in range(count)]


def trained(base: Base, users: list[int], tokens: int, layers: int = 2, kind: str = "lora") -> list[State]:
    adapter = Adapter(rank=3, layers=layers, kind=kind, factors="random")  # type: ignore[arg-type]
    block = layout("shared", adapter, base, 0)
    engine = Engine(tokens_per_pass=tokens)
    tower = Tower(base, [block], engine)
    try:
        start = {f"shared/{n}": v for n, v in block.start.items()}
        learners = [Learner(start, examples(u, 3 + u % 3), [], (0, 1, u, "shared")) for u in users]
        return Trainer(tower, (block,), engine).train(learners, lambda _: True, Local(optimizer="sgd", lr=0.5, batch=2))[0]
    finally:
        tower.close()


@pytest.mark.parametrize("kind", ["lora", "core", "ia3"])
def test_a_cohort_equals_one_user_at_a_time(base: Base, kind: str) -> None:
    together = trained(base, [0, 1, 2, 3], 4096, kind=kind)
    for user, state in zip([0, 1, 2, 3], together, strict=True):
        (alone,) = trained(base, [user], 8, kind=kind)
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, atol=2e-6, rtol=1e-5)


def test_users_do_move_and_differ(base: Base) -> None:
    one, two = trained(base, [0, 1], 4096)
    name = next(n for n in one if "lora_B" in n)
    assert float(one[name].abs().max()) > 0
    assert not torch.equal(one[name], two[name])


def test_another_users_data_changes_nothing(base: Base) -> None:
    first, second = trained(base, [0, 1], 4096), trained(base, [4, 1], 4096)
    assert any(not torch.equal(first[0][n], second[0][n]) for n in first[0])
    for name, value in first[1].items():
        torch.testing.assert_close(second[1][name], value, atol=2e-6, rtol=1e-5)

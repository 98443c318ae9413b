"""The small random world of a benchmark: a Llama nobody trained, users with random tokens, their own adapters."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from client.adapters.layout import Layout, layout
from client.base import Base
from client.data.types import Encoded
from configs.scenario import Adapter, Engine, Local
from strategies.tree import State, generator

RANK, ALPHA, LR = 8, 16.0, 1e-3
ADAPTER = Adapter(kind="lora", rank=RANK, alpha=ALPHA, targets=("all-linear",), layers=0)
KINDS = {
    "lora": ADAPTER,
    "core": replace(ADAPTER, kind="core", rank=2 * RANK, factors="random"),
    "mixed": replace(ADAPTER, kind="mixed", rank=2 * RANK, factors="random"),
}


@dataclass(frozen=True)
class Size:
    """A model and a round of users on it."""

    hidden: int
    layers: int
    vocab: int
    users: int
    examples: int  # of each user, in one batch
    tokens: int  # of each example
    blocks: tuple[str, ...] = ("shared", "private")  # adapters, all of them trained
    kind: str = "lora"  # of every adapter: one of KINDS

    @property
    def tokens_per_pass(self) -> int:
        """All users in one pass."""
        return self.users * self.examples * self.tokens

    @property
    def engine(self) -> Engine:
        """The engine with exactly one pass for everyone."""
        return Engine(device="cpu", tokens_per_pass=self.tokens_per_pass, cache="none")


COMPUTE = Size(hidden=256, layers=6, vocab=8192, users=16, examples=2, tokens=64)  # bound by multiplications on a CPU
OVERHEAD = Size(hidden=64, layers=2, vocab=512, users=64, examples=1, tokens=64)  # bound by calls, as small batches on a GPU
TINY = Size(hidden=32, layers=2, vocab=64, users=4, examples=2, tokens=8)


def random_model(size: Size) -> LlamaForCausalLM:
    """A random Llama with grouped-query attention, float32, frozen."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max(size.tokens, 64),
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def random_ids(size: Size, key: object = "ids") -> Tensor:
    """Every user's examples, int64 [users, examples, tokens]."""
    shape = (size.users, size.examples, size.tokens)
    return torch.randint(0, size.vocab, shape, generator=generator(0, key))


def encoded(ids_NT: Tensor) -> tuple[Encoded, ...]:
    """One user's examples as the engine takes them: every token but the first is predicted."""
    return tuple(Encoded(ids, 1, -1, index) for index, ids in enumerate(ids_NT))


def layouts(size: Size, base: Base) -> tuple[Layout, ...]:
    """The adapters of a size, on every linear layer."""
    return tuple(layout(block, KINDS[size.kind], base, 0) for block in size.blocks)


def starts(size: Size, found: tuple[Layout, ...]) -> list[State]:
    """Each user's own adapters, as after some training: "block/PEFT name" -> tensor, both factors different from zero."""
    every = {f"{x.block}/{name}": value for x in found for name, value in x.start.items()}
    return [{n: _stirred(v, generator(0, user, n)) for n, v in every.items()} for user in range(size.users)]


def local(size: Size, optimizer: str = "adamw", steps: int = 1) -> Local:
    """So many steps over the one batch, nothing clipped: what PEFT's users do."""
    lr = LR if optimizer == "adamw" else 0.1
    return Local(optimizer=optimizer, lr=lr, epochs=steps, batch=size.examples, max_norm=0.0)  # type: ignore[arg-type]


def _stirred(value: Tensor, noise: torch.Generator) -> Tensor:
    return value + 0.02 * torch.randn(value.shape, generator=noise).to(value)

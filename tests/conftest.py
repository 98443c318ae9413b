"""Tiny random models, users of made-up token ids, and a process that reaches no network."""

import json
import os
import random

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from client.base import Base
from client.data.types import Encoded

VOCAB = 96
LAYERS = 3


# The files that take longest, in this order before all others: the last thing that a worker takes should be short, and a worker that
# waits for Flower's processes should have one beside it that computes.
LONGEST = (
    "test_flower_ray", "test_compare", "test_flower_capture", "test_guarded_kill", "test_kill", "test_live", "test_resident",
    "test_flower_users", "test_flower_privacy", "test_bench", "test_user_privacy", "test_flower_nodes",
    "test_flower_grid", "test_accounting", "test_audit", "test_engine_peft", "test_cli", "test_bench_dp", "test_study",
    "test_sweep", "test_report", "test_bad_input", "test_flower_strategy", "test_retrained", "test_trackers",
    "test_aggregators_train", "test_synthetic", "test_secure_grid", "test_peft", "test_rounds", "test_ledger",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the tests of a file stay in their order."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors; this one PEFT itself gives rise to in transformers."""
    config.addinivalue_line("filterwarnings", "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Sums are then made in the same order every time."""
    torch.set_num_threads(1)


def llama() -> Base:
    """Grouped queries, a gated feed-forward, no biases."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=VOCAB, num_hidden_layers=LAYERS, initializer_range=0.1, **shape)  # type: ignore[arg-type]
    return _base(LlamaForCausalLM, config, "tiny-llama")


def write_files(folder: Path, tokenizer: Any, users: int) -> str:
    """Write a tiny Llama and users of different sizes that answer prompts with yea or nay; returns the settings that name them."""
    llama().model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "users").mkdir()
    draw = random.Random(0)
    for user in range(users):
        texts = [" ".join(f"w{draw.randrange(60)}" for _ in range(draw.randint(2, 7))) for _ in range(6 + user % 4)]
        made = [json.dumps({"prompt": text, "label": draw.choice(["yea", "nay"])}) + "\n" for text in texts]
        (folder / "users" / f"u{user}.jsonl").write_text("".join(made))
    return f"model.name={folder / 'model'} data.labels=[nay,yea] data.path={folder / 'users'}"


def gpt2() -> Base:
    """Modules are `Conv1D`, weights the other way round, and a tied head."""
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64, initializer_range=0.1,
                        bos_token_id=1, eos_token_id=2)  # fmt: skip
    return _base(GPT2LMHeadModel, config, "tiny-gpt2")


def qwen2() -> Base:
    """Biases in q, k and v, random here so that they count."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=VOCAB, num_hidden_layers=LAYERS, initializer_range=0.1, **shape)  # type: ignore[arg-type]
    base = _base(Qwen2ForCausalLM, config, "tiny-qwen2")
    for name, value in base.model.named_parameters():
        if name.endswith("_proj.bias"):
            value.normal_(0, 0.1)
    return base


def _base(kind: Any, config: Any, name: str) -> Base:
    torch.manual_seed(0)
    return Base(kind(config).requires_grad_(False).eval(), None, name)


ARCHITECTURES: dict[str, Callable[[], Base]] = {"llama": llama, "gpt2": gpt2, "qwen2": qwen2}


@pytest.fixture
def base() -> Base:
    """A fresh tiny Llama in float32."""
    return llama()


@pytest.fixture(params=ARCHITECTURES)
def any_base(request: pytest.FixtureRequest) -> Base:
    """Each of the tiny architectures in turn."""
    return ARCHITECTURES[request.param]()


@pytest.fixture(scope="session")
def texts() -> Callable[..., list[Encoded]]:
    """A maker of one user's examples: ``texts(user, count)``; of ragged lengths unless ``length`` says which."""

    def make(user: int, count: int, task: str = "answer", length: int = 0, labels: int = 2) -> list[Encoded]:
        draw = torch.Generator().manual_seed(user)
        found = []
        for i in range(count):
            ids = torch.randint(3, VOCAB, (length or 5 + (3 * user + 2 * i) % 7,), generator=draw)
            if task == "choice":
                found.append(Encoded(ids, len(ids), (user + i) % labels, i))
            else:
                found.append(Encoded(ids, 1 if task == "text" else 3, -1, i))
        return found

    return make


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words that are known in advance, one token each."""
    words = ["<unk>", "<s>", "</s>", "a", "yea", "nay", *(f"w{i}" for i in range(VOCAB - 6))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")

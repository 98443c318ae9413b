"""Other bases of one that is here: trained further on public text, rounded, or with fewer layers. Saved as a Hugging Face folder.

What a maker of models does between two versions, at a size that needs no hub.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from client import base as bases
from client.base import Base
from client.data import SOURCES
from configs.errors import InputError, unknown
from configs.scenario import Data, Model
from strategies.tree import generator

STEPS, ROWS, LENGTH = 24, 2, 64  # texts of a step, and tokens of a text
PRECISIONS = {"bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Change:
    """What changes, in this order: layers are left out, the rest trains, weights are rounded."""

    steps: int = STEPS
    layers: int = 4  # top layers that train; 0: all
    lr: float = 1e-4
    text: str = "shakespeare"
    drop: int = 0
    precision: str = ""
    seed: int = 0


def drift(model: str, out: Path, change: Change) -> Iterator[str]:
    """Make ``out``, whole or not at all, and say what happens. Raises `InputError`."""
    if out.exists():
        raise InputError(f"{out} exists already; choose another folder")
    if change.precision and change.precision not in PRECISIONS:
        raise unknown("--precision", change.precision, PRECISIONS)
    base = bases.load(Model(model), "cpu")
    if change.drop:
        shorten(base, change.drop)
        yield f"{len(base.layers)} layers are left"
    if change.steps:
        ids = tokens(base, change.text)
        first, last = further(base, ids, change)
        yield f"{change.steps} steps on {change.text}: from {first:.3f} to {last:.3f} nats per token"
    if change.precision:
        rounded(base.model, PRECISIONS[change.precision])
    save(base, out)
    yield f"model.name={out}"


def shorten(base: Base, count: int) -> None:
    """Leave ``count`` layers out of the middle: as far from both ends as can be.

    Men et al., "ShortGPT", arXiv 2403.03853, section 3: middle layers can be missed best.
    """
    layers, depth = base.layers, len(base.layers)
    if count > depth - 2:
        raise InputError(f"--drop must leave two layers, and the model has {depth}; drop at most {depth - 2}")
    first = (depth - count) // 2
    del layers[first : first + count]
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 - a module's own types say Tensor
    config: Any = base.model.config
    config.num_hidden_layers = depth - count
    if getattr(config, "layer_types", None):
        config.layer_types = [*config.layer_types[:first], *config.layer_types[first + count :]]


def further(base: Base, ids: Tensor, change: Change) -> tuple[float, float]:
    """Train the top layers' weights on the text; the loss of the first and of the last steps, nats per token."""
    chosen = base.layers[-change.layers :] if change.layers else base.layers
    moving = [value.requires_grad_(True) for layer in chosen for value in layer.parameters()]
    optimizer = torch.optim.AdamW(moving, change.lr, weight_decay=0.0)
    losses = []
    length = min(LENGTH, len(ids) // 2)
    for step in range(change.steps):
        at = torch.randint(len(ids) - length, (ROWS,), generator=generator(change.seed, "drift", step))
        rows_NT = torch.stack([ids[i : i + length] for i in at.tolist()])
        loss = base.model(input_ids=rows_NT, labels=rows_NT, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        losses.append(loss.item())
    base.model.requires_grad_(False)
    tenth = max(1, len(losses) // 10)
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


@torch.no_grad()
def rounded(model: nn.Module, dtype: torch.dtype) -> None:
    """Every number as it is in another precision; for eight bits each weight at a scale of its own, its largest number at 448."""
    for value in model.parameters():
        scale = 448 / value.abs().max().clamp(min=1e-12) if dtype.itemsize == 1 and value.dim() > 1 else 1.0
        kept = dtype if value.dim() > 1 or dtype.itemsize > 1 else torch.bfloat16
        value.copy_((value * scale).to(kept).to(value.dtype) / scale)


def tokens(base: Base, text: str) -> Tensor:
    """A text as one row of token ids."""
    if text in SOURCES and SOURCES[text].task == "text":
        users = SOURCES[text].read(Data(name=text))
        words = "\n\n".join(e.answer for user in sorted(users)[:40] for e in users[user])
    elif Path(text).is_file():
        words = Path(text).read_text()
    else:
        raise unknown("--text", text, [name for name, source in SOURCES.items() if source.task == "text"])
    ids = torch.tensor(base.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) < 2:
        raise InputError(f"--text {text} holds too few words")
    return ids


def save(base: Base, out: Path) -> None:
    """Write model and tokenizer in the precision that they have."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        base.model.save_pretrained(scratch)
        base.tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

"""Other bases than the tiny world's: drifted a little, with one layer less, with its heads in another order, wider."""

import shutil
from pathlib import Path

import torch

from client.base import Base, decoder_layers
from simulations.migrate.drifts import shorten
from tests.conftest import llama


def drifted(strength: float = 0.02) -> Base:
    """Every weight of the tiny Llama a little elsewhere."""
    base = llama()
    draw = torch.Generator().manual_seed(1)
    for name, value in base.model.named_parameters():
        if value.dim() > 1 and "embed" not in name and "head" not in name:
            value += strength * value.std() * torch.randn(value.shape, generator=draw)
    return base


def shorter() -> Base:
    """Without its middle layer."""
    base = llama()
    shorten(base, 1)
    return base


def saved(base: Base, folder: Path, like: Path) -> Path:
    """A Hugging Face folder with the tokenizer of another one."""
    base.model.save_pretrained(folder)
    for path in like.glob("*token*"):
        shutil.copy(path, folder)
    return folder


__all__ = ["decoder_layers", "drifted", "saved", "shorter"]

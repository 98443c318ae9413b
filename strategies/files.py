"""Files that are whole or not there: written under a temporary name, flushed to disk, then renamed."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from strategies.tree import State


def write_text(path: Path, text: str) -> None:
    """Replace a text file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_text(text)
    _settle(scratch, path)


def write_state(path: Path, state: State) -> None:
    """Replace a safetensors file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(whole(state), scratch)
    _settle(scratch, path)


def whole(state: Mapping[str, torch.Tensor]) -> State:
    """Copies that a safetensors file takes: on the CPU, each with memory of its own; in the order of their names."""
    return {n: v.detach().cpu().clone(memory_format=torch.contiguous_format) for n, v in sorted(state.items())}


def read_state(path: Path) -> State:
    """Read a safetensors file onto the CPU."""
    return load_file(path)


def _settle(scratch: Path, path: Path) -> None:
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    scratch.replace(path)

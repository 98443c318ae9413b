"""A bounded store of activations below the lowest adapter. They depend on the tokens alone, so users share entries.

A full store takes no more entries (it does not evict: training goes round in epochs, where eviction by age would never hit).
"""

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from client import wheels

Entry = dict[str, Tensor]


class ActivationCache:
    """Entries by key, in memory and, with a folder, on disk as well; together at most ``limit`` bytes each."""

    def __init__(self, limit: int, folder: Path | None = None, device: str = "cpu") -> None:
        self.limit, self.folder, self.device, self.held = limit, folder, device, 0
        self.entries: dict[bytes, Entry] = {}
        self.on_disk = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    def get(self, key: bytes) -> Entry | None:
        """The entry of a key, or None."""
        found = self.entries.get(key)
        if found is None and self.folder is not None and (path := self._path(key)).exists():
            try:
                found = load_file(path, device=self.device)
            except (SafetensorError, OSError):  # half-written by a process that was killed: as if it were not there
                return None
            self._hold(key, found)
        return found

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an entry while there is room."""
        self._hold(key, entry)
        size = _size(entry)
        if self.folder is not None and self.on_disk + size <= self.limit and not (path := self._path(key)).exists():
            scratch = path.with_suffix(f".{os.getpid()}.tmp")
            save_file({name: value.contiguous() for name, value in entry.items()}, scratch)
            scratch.replace(path)
            self.on_disk += size

    def _hold(self, key: bytes, entry: Entry) -> None:
        if key not in self.entries and self.held + _size(entry) <= self.limit:
            self.held += _size(entry)
            self.entries[key] = entry

    def _path(self, key: bytes) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.safetensors"


def open_cache(kind: str, limit_mb: int, base: nn.Module, what: str) -> ActivationCache:
    """Open the cache that a scenario asks for. A folder on disk belongs to one base, dtype and kind of activation."""
    limit = 0 if kind == "none" else limit_mb * 2**20
    if kind != "disk":
        return ActivationCache(limit)
    device = str(next(base.parameters()).device)
    return ActivationCache(limit, wheels.cache_dir() / "activations" / f"{fingerprint(base)}-{what}", device)


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits over the names, shapes, dtypes, sums and first values of a model's parameters."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in model.named_parameters():
        head = value.detach().flatten()[:256].float().cpu().numpy().tobytes()
        total = float(value.detach().sum(dtype=torch.float64 if value.device.type != "mps" else torch.float32))
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} {total:.6e}".encode() + head)
    return digest.hexdigest()


def _size(entry: Entry) -> int:
    return sum(value.numel() * value.element_size() for value in entry.values())

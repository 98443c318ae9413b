"""What a private adapter makes sense on, as hashes: the base's weights, the tokenizer, and how the adapter is laid out."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import safetensors.torch
import torch

from client.base import Base
from client.split import Split
from client.store.manifest import Origin
from strategies.files import whole
from strategies.tree import State

SAMPLE = 256  # numbers of each parameter that are looked at


def of(seed: int, base: Base, split: Split) -> Origin:
    """The hashes of what is loaded. Take them before a tower is put on the base."""
    return Origin(of_base(base), of_tokenizer(base.tokenizer), of_adapter(split, seed))


def of_base(base: Base) -> str:
    """SHA-256 over every parameter's name and shape, and over evenly spread numbers of it, rounded to bfloat16.

    It is the same in float32 and bfloat16, and takes milliseconds. It tells models apart, and is no proof against a forger.
    """
    found = hashlib.sha256()
    for name, value in base.model.named_parameters():
        flat_N = value.detach().flatten()
        some = flat_N[:: max(1, flat_N.numel() // SAMPLE)][:SAMPLE].to(torch.bfloat16).contiguous().view(torch.uint8)
        found.update(f"{name}{tuple(value.shape)}".encode() + some.cpu().numpy().tobytes())
    return found.hexdigest()


def of_tokenizer(tokenizer: Any) -> str:
    """SHA-256 of the vocabulary, the rules and the chat template; not of padding, which a call may change."""
    if tokenizer is None:
        return _hash(None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    kept = {name: said for name, said in rules.items() if name not in ("padding", "truncation")}
    return _hash([kept, getattr(tokenizer, "chat_template", None)])


def of_adapter(split: Split, seed: int) -> str:
    """SHA-256 of what is kept of a user: names, shapes, settings, and the seed where frozen factors are drawn from it."""
    shapes = {name: list(value.shape) for name, value in split.start().items() if split.kept(name)}
    blocks = {name.partition("/")[0] for name in shapes}
    layouts = [x for x in split.layouts if x.block in blocks]
    drawn = any(x.config.factors == "random" and any(x.constants.values()) for x in layouts)
    return _hash([shapes, {x.block: asdict(x.config) for x in layouts}, seed if drawn else None])


def of_state(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a state as a safetensors file."""
    return hashlib.sha256(encoded(state)).hexdigest()


def encoded(state: Mapping[str, torch.Tensor]) -> bytes:
    """A state as a safetensors file; equal states give equal bytes."""
    return safetensors.torch.save(whole(state))


def decoded(data: bytes) -> State:
    """Read `encoded`."""
    return safetensors.torch.load(data)


def _hash(said: object) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

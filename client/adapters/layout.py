"""Where an adapter sits on a base: target modules as PEFT names them, the start of its parameters, and its binding."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from client.adapters import KINDS, late_prompt
from client.adapters.lora import changes
from client.adapters.prompt import NAME as PROMPT
from client.adapters.prompt import init_prompt
from client.adapters.types import Part
from client.base import Base
from configs.errors import InputError, nearest
from configs.scenario import Adapter
from strategies.tree import State, generator

PREFIX = "base_model.model."  # PEFT's, before every module name in a saved adapter


@dataclass(frozen=True)
class Layout:
    """One adapter (the shared or the private one) on one base."""

    block: str  # "shared" or "private"
    config: Adapter
    modules: tuple[str, ...]  # target modules, in the model's order; none for a prompt
    lowest: int  # the lowest decoder layer that it changes; 0 for a soft prompt
    start: State  # where every user starts
    constants: dict[str, State]  # module -> frozen factors; of a late prompt, its unit

    def names(self) -> tuple[str, ...]:
        """The parameters' names, in a fixed order."""
        return tuple(self.start)

    def parts(self, state: State) -> dict[str, Part]:
        """Bind parameters with a leading user axis: module -> closure that changes its output."""
        kind = KINDS.get(self.config.kind)
        if kind is None:
            return {}
        return {m: kind.part(self.config, _of(state, m), self.constants[m]) for m in self.modules}


def layout(block: str, config: Adapter, base: Base, seed: int, mutable: bool = False) -> Layout:
    """Find the targets of an adapter and make its start, keyed by (seed, block, module) alone.

    ``mutable``: a LoRA has a delta beside its factors, for an aggregator that changes the base. Raises `InputError` when a target names
    no module of the base.
    """
    if config.kind == "prompt":
        embeddings = base.model.get_input_embeddings().weight
        start = init_prompt(config, embeddings, generator(seed, block, "prompt"))
        return Layout(block, config, (), 0, start, {})
    if config.kind == late_prompt.KIND:
        start, unit = late_prompt.init_late_prompt(config, base, generator(seed, block, config.kind))
        return Layout(block, config, (), late_prompt.lowest(config, base), start, {late_prompt.NAME: unit})
    kind, found = KINDS[config.kind], targets(base, config, block)
    start: State = {}
    constants: dict[str, State] = {}
    for name in found:
        module = base.model.get_submodule(name)
        extra = changes(module) if mutable and config.kind == "lora" else {}
        for suffix, value in {**kind.init(config, module, generator(seed, block, name)), **extra}.items():
            start[f"{PREFIX}{name}.{suffix}"] = value.to(base.device)
        frozen = kind.constants(config, module, generator(seed, block, name, "constants"))
        constants[name] = {key: value.to(base.device) for key, value in frozen.items()}
    return Layout(block, config, found, min(layer_of(base, n) for n in found), start, constants)


def targets(base: Base, config: Adapter, block: str) -> tuple[str, ...]:
    """Names of the linear modules in the chosen top layers whose suffix is asked for; ``all-linear`` takes them all."""
    depth = len(base.layers)
    first = max(depth - config.layers, 0) if config.layers else 0
    linear = [name for name, module in base.model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    inside = [name for name in linear if layer_of(base, name) >= first]
    if tuple(config.targets) == ("all-linear",):
        return tuple(inside)
    known = sorted({name.rpartition(".")[2] for name in inside})
    for suffix in config.targets:
        if not any(_ends(name, suffix) for name in inside):
            raise InputError(f"{block}.targets: '{suffix}' is no linear module of the model's layers{nearest(suffix, known)}")
    return tuple(name for name in inside if any(_ends(name, suffix) for suffix in config.targets))


def layer_of(base: Base, module: str) -> int:
    """The index of the decoder layer that a module lies in; -1 outside of them (head, embeddings)."""
    stack = next(name for name, value in base.model.named_modules() if value is base.layers)
    inner = module.removeprefix(f"{stack}.")
    return -1 if inner == module else int(inner.partition(".")[0])


def _ends(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _of(state: State, module: str) -> State:
    prefix = f"{PREFIX}{module}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def has_prompt(layouts: tuple[Layout, ...]) -> bool:
    """Whether one of the adapters is a soft prompt before the model, which changes every layer."""
    return any(PROMPT in layout.start for layout in layouts)


def fresh(layout: Layout) -> State:
    """A copy of the start."""
    return {name: torch.clone(value) for name, value in layout.start.items()}

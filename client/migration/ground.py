"""What a base shows of itself to a migrator: weights, shapes, embeddings, and what its layers do to public texts."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from client.adapters.layout import Layout, layer_of
from client.adapters.types import weight_OI
from client.base import Base
from client.data.types import Encoded
from client.rows import pad
from strategies.migrators.terms import PROMPT, Ground, Heads

TEXTS, ROWS, TOKENS = 256, 16, 1024  # public texts that are looked at, at most; rows of a pass; tokens that are kept


def ground(base: Base, layouts: Sequence[Layout], texts: Sequence[Encoded] = ()) -> Ground:
    """What ``base`` shows, for the modules that ``layouts`` change. With ``texts``: what its layers add to them, too."""
    linear = {n: m for n, m in base.model.named_modules() if isinstance(m, nn.Linear | Conv1D) and layer_of(base, n) >= 0}
    places = {name: (layer_of(base, name), _inner(base, name)) for name in linear}
    prompt = (PROMPT,) if any(not x.modules for x in layouts) else ()
    targets = (*dict.fromkeys(m for x in layouts for m in x.modules), *prompt)
    weights = {name: weight_OI(module).detach() for name, module in linear.items()}
    embeddings = base.model.get_input_embeddings().weight.detach()
    shown = activations(base, texts) if texts else None
    return Ground(weights, places, targets, len(base.layers), embeddings, _heads(base.model.config), shown)


@torch.no_grad()
def activations(base: Base, texts: Sequence[Encoded]) -> Tensor:
    """What each layer adds to the stream at single tokens, [L, N, D] float32. Texts, and tokens of them, are spread evenly."""
    chosen = [texts[i] for i in torch.linspace(0, len(texts) - 1, min(TEXTS, len(texts))).long().tolist()]
    every_LND = torch.cat([_added(base, chosen[first : first + ROWS]) for first in range(0, len(chosen), ROWS)], 1)
    return every_LND[:, torch.linspace(0, every_LND.shape[1] - 1, min(TOKENS, every_LND.shape[1])).long()]


def _added(base: Base, some: Sequence[Encoded]) -> Tensor:
    rows, found = pad(some).to(base.device), []
    real_NT = torch.arange(rows.ids_NT.shape[1], device=base.device) < rows.length_N[:, None]

    def note(_layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        added = (output[0] if isinstance(output, tuple) else output) - inputs[0]
        found.append(added[real_NT].float().cpu())

    with ExitStack() as stack:
        for layer in base.layers:
            stack.callback(layer.register_forward_hook(note).remove)
        base.model.base_model(input_ids=rows.ids_NT, use_cache=False)
    return torch.stack(found)


def _inner(base: Base, module: str) -> str:
    """A module's name within its layer."""
    return module.partition(f".{layer_of(base, module)}.")[2]


def _heads(config: Any) -> Heads:
    queries = config.num_attention_heads
    return Heads(queries, getattr(config, "num_key_value_heads", None) or queries,
                 getattr(config, "head_dim", None) or config.hidden_size // queries)  # fmt: skip

"""Late prompt: n trained vectors before a user's tokens, in the stream of one layer instead of before the model.

Liu et al., "Late Prompt Tuning: A Late Prompt Could Be Better Than Many Prompts", Findings of EMNLP 2022, arXiv 2210.11292, section 3
(there a small network makes the vectors out of the layer's hidden states; here they are trained as they are). It enters before the
lowest of the top ``layers`` layers, so that all below is computed once for everyone, which makes it a soft prompt for small devices.

The start is what the base makes of randomly drawn tokens at that layer, the same for all users, in units of its root mean square: a
step then moves as much of a vector in one layer's stream as in another's. It does change the model, as a soft prompt's does.

Shape suffixes: n vectors, D hidden, K users, u privacy units.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from client.base import Base
from client.capture import Captured
from configs.scenario import Adapter
from strategies.tree import State

KIND, NAME, SCALE = "late_prompt", "late_prompt_embeddings", "scale"


def lowest(config: Adapter, base: Base) -> int:
    """The layer that it enters before."""
    return max(len(base.layers) - config.layers, 0) if config.layers else 0


@torch.no_grad()
def init_late_prompt(config: Adapter, base: Base, generator: torch.Generator) -> tuple[State, State]:
    """One user's start [n, D], what a layer makes of random tokens after a first one; and the unit that it is counted in."""
    vocabulary = base.model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (1, config.tokens + 1), generator=generator).to(base.device)
    found: list[Tensor] = []

    def look(_layer: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0])
        raise Captured

    handle = base.layers[lowest(config, base)].register_forward_pre_hook(look)
    try:
        with suppress(Captured):
            base.model.base_model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    stream_nD = found[0][0, 1:].float()
    scale = stream_nD.square().mean().sqrt()
    return {NAME: stream_nD / scale}, {SCALE: scale}


def vectors(state: State, constants: dict[str, State]) -> Tensor:
    """What enters the stream, [K, n, D], or one for each unit, [K * u, n, D]."""
    return state[NAME].flatten(0, -3) * constants[NAME][SCALE]

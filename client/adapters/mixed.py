"""A core whose input directions are mixed: y_k += alpha / r * x V^T (I + g T)^T M_k^T U^T, with V and U as in `core.py`.

M_k [r, r] is a user's own, as a core's. T [r, r] is meant to be everybody's (scheme ``fedrep``): the federation learns which
combinations of the fixed directions tell users apart, which one user's few examples cannot. Both start at zero, where the model is the
base; g makes the learning rate of a LoRA move T as far as it should go.
"""

import torch
from torch import nn

from client.adapters.core import CORE, M
from client.adapters.types import Kind, Part
from configs.scenario import Adapter
from strategies.tree import State

T = "mix.weight"  # [r, r]
GAIN = 10.0


def mix(t_RR: torch.Tensor) -> torch.Tensor:
    """The mixing matrix I + g T, with or without a leading user axis."""
    return torch.eye(t_RR.shape[-1], device=t_RR.device) + GAIN * t_RR


def _init(config: Adapter, module: nn.Module, generator: torch.Generator) -> State:
    start = CORE.init(config, module, generator)
    return {**start, T: torch.zeros_like(start[M])}


def _part(config: Adapter, state: State, constants: State) -> Part:
    return CORE.part(config, {M: state[M] @ mix(state[T])}, constants)


MIXED = Kind(_init, CORE.constants, _part)

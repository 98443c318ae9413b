"""A core whose input directions are mixed: y_k += alpha / r * x V^T (I + g T)^T M_k^T U^T, with V and U as in `core.py`.

M_k [r, r] is a user's own, as a core's. T [r, r] is meant to be everybody's (scheme ``fedrep``): the federation learns which
combinations of the fixed directions tell users apart, which one user's few examples cannot. Both start at zero, where the model is the
base; g makes the learning rate of a LoRA move T as far as it should go.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from client.adapters.core import CORE, M
from client.adapters.types import Kind, Part
from configs.scenario import Adapter
from strategies.tree import State

T = "mix.weight"  # [r, r]
GAIN = 10.0


def mix(t_RR: Tensor) -> Tensor:
    """The mixing matrix I + g T, with or without a leading user axis."""
    return torch.eye(t_RR.shape[-1], device=t_RR.device) + GAIN * t_RR


def _init(config: Adapter, module: nn.Module, generator: torch.Generator) -> State:
    start = CORE.init(config, module, generator)
    return {**start, T: torch.zeros_like(start[M])}


class _Mixed(torch.autograd.Function):
    """M (I + g T) of K users, each multiplied once; backward a gradient for each of their u privacy units."""

    @staticmethod
    def forward(ctx: Any, m_KuRR: Tensor, t_KuRR: Tensor) -> Tensor:
        m_KRR, mix_KRR = m_KuRR[:, 0], mix(t_KuRR[:, 0])
        ctx.save_for_backward(m_KRR, mix_KRR)
        units = max(m_KuRR.shape[1], t_KuRR.shape[1])
        return (m_KRR @ mix_KRR).unsqueeze(1).expand(-1, units, -1, -1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor | None]:
        m_KRR, mix_KRR = ctx.saved_tensors
        to_m, to_t = ctx.needs_input_grad
        return (
            (slopes[0].flatten(1, 2) @ mix_KRR.mT).view_as(slopes[0]) if to_m else None,
            (GAIN * m_KRR.mT).unsqueeze(1) @ slopes[0] if to_t else None,
        )


def _part(config: Adapter, state: State, constants: State) -> Part:
    m, t = state[M], state[T]
    return CORE.part(config, {M: cast(Tensor, _Mixed.apply(m, t)) if m.dim() == 4 else m @ mix(t)}, constants)


MIXED = Kind(_init, CORE.constants, _part)

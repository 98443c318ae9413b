"""An r x r core between frozen orthonormal factors: y_k += alpha / r * x V^T M_k^T U^T. Few numbers per user.

Balazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", arXiv 2405.17604, eq. 1, with
orthonormal factors: U [d_out, r] and V [r, d_in] are the leading singular vectors of the frozen weight (``svd``) or random.
``fisher`` takes the leading directions of what goes in and of the loss's slope at what comes out, on texts that belong to
nobody (`fisher.py`). Factors are public, so that noise for privacy falls on r * r numbers only. M starts at zero.
"""

import torch
from torch import nn

from client.adapters.types import Kind, Part, sizes, times, weight_OI
from configs.scenario import Adapter
from strategies.tree import State

M = "core.weight"  # [r, r]


def _init(config: Adapter, module: nn.Module, _generator: torch.Generator) -> State:
    rank = min(config.rank, *sizes(module))
    return {M: torch.zeros(rank, rank)}


def _constants(config: Adapter, module: nn.Module, generator: torch.Generator) -> State:
    d_in, d_out = sizes(module)
    rank = min(config.rank, d_in, d_out)
    if config.factors in ("random", "fisher"):  # the latter until a node has fitted them
        u = torch.linalg.qr(torch.randn(d_out, rank, generator=generator)).Q
        v = torch.linalg.qr(torch.randn(d_in, rank, generator=generator)).Q.T
    else:
        u, _, v = torch.linalg.svd(weight_OI(module).detach().float().cpu(), full_matrices=False)
        u, v = u[:, :rank], v[:rank]
    sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()  # an SVD is free in sign: fix it, so that machines agree
    return {"U": (u * sign).contiguous(), "V": (v * sign.T).contiguous()}


def _part(config: Adapter, state: State, constants: State) -> Part:
    m_KRR, scale = state[M], config.alpha / config.rank
    return lambda x, y: y + times(x @ constants["V"].to(x).T, m_KRR) @ (constants["U"].to(x).T * scale)


CORE = Kind(_init, _constants, _part)

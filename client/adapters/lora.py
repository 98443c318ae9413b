"""LoRA with a user axis: y_k += alpha / r * (x_k A_k^T) B_k^T, one batched product for all users of a pass.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685, eq. 3. Names, shapes and
start are PEFT's: A is [r, d_in] (Kaiming uniform), B is [d_out, r] (zero).
"""

import math

import torch
from torch import nn

from client.adapters.types import Kind, Part, add_times, sizes, times
from configs.scenario import Adapter
from strategies.tree import State

A, B = "lora_A.weight", "lora_B.weight"


def _init(config: Adapter, module: nn.Module, generator: torch.Generator) -> State:
    d_in, d_out = sizes(module)
    bound = math.sqrt(1 / d_in)  # kaiming_uniform_ with a = sqrt(5), as nn.Linear and PEFT do
    a = torch.empty(config.rank, d_in).uniform_(-bound, bound, generator=generator)
    return {A: a, B: torch.zeros(d_out, config.rank)}


def _part(config: Adapter, state: State, _constants: State) -> Part:
    a_KRI, b_KOR, scale = state[A], state[B], config.alpha / config.rank
    return lambda x, y: add_times(y, times(x, a_KRI) * scale, b_KOR)


LORA = Kind(_init, lambda _config, _module, _generator: {}, _part)

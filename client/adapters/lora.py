"""LoRA with a user axis: y_k += alpha / r * (x_k A_k^T) B_k^T, one batched product for all users of a pass.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685, eq. 3. Names, shapes and
start are PEFT's: A is [r, d_in] (Kaiming uniform), B is [d_out, r] (zero).

Where an aggregator changes the base, the sum of its changes stands beside them as delta [d_out, d_in], zero at the start and at the
same scale: y_k += alpha / r * x_k delta^T. All users have it in common, and nobody trains it.
"""

import math

import torch
from torch import nn

from client.adapters.types import Kind, Part, add_times, sizes, times
from configs.scenario import Adapter
from strategies.tree import State

A, B, DELTA = "lora_A.weight", "lora_B.weight", "lora_delta.weight"


def _init(config: Adapter, module: nn.Module, generator: torch.Generator) -> State:
    d_in, d_out = sizes(module)
    bound = math.sqrt(1 / d_in)  # kaiming_uniform_ with a = sqrt(5), as nn.Linear and PEFT do
    a = torch.empty(config.rank, d_in).uniform_(-bound, bound, generator=generator)
    return {A: a, B: torch.zeros(d_out, config.rank)}


def _part(config: Adapter, state: State, _constants: State) -> Part:
    a_KRI, b_KOR, scale = state[A], state[B], config.alpha / config.rank
    if DELTA not in state:
        return lambda x, y: add_times(y, times(x, a_KRI) * scale, b_KOR)
    return lambda x, y: add_times(add_times(y, x * scale, state[DELTA]), times(x, a_KRI) * scale, b_KOR)


def changes(module: nn.Module) -> State:
    """The delta of one module before the first round."""
    d_in, d_out = sizes(module)
    return {DELTA: torch.zeros(d_out, d_in)}


LORA = Kind(_init, lambda _config, _module, _generator: {}, _part)

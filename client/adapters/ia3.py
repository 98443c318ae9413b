"""(IA)^3: every output of a target module is scaled, y_k <- l_k * y_k, starting at one.

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", NeurIPS 2022,
arXiv 2205.05638, section 3.3. The paper scales keys, values and the inner activation of the feed-forward part: with a gated
feed-forward that is the output of up_proj, so `targets: [k_proj, v_proj, up_proj]` is the paper's choice. It stands after a shared
LoRA of the same module. The name and shape [d_out, 1] are PEFT's.
"""

import torch
from torch import Tensor, nn

from client.adapters.types import Kind, Part, sizes
from configs.scenario import Adapter
from strategies.tree import State

L = "ia3_l"


def _init(_config: Adapter, module: nn.Module, _generator: torch.Generator) -> State:
    return {L: torch.ones(sizes(module)[1], 1)}


def _part(_config: Adapter, state: State, _constants: State) -> Part:
    l_K1O = state[L].transpose(-1, -2)  # or [K, u, 1, O]

    def part(_x: Tensor, y: Tensor) -> Tensor:
        return (y.reshape(*l_K1O.shape[:-2], -1, y.shape[-1]) * l_K1O.to(y.dtype)).view_as(y)

    return part


IA3 = Kind(_init, lambda _config, _module, _generator: {}, _part)

"""What an adapter kind is.

Shape suffixes: K users of a pass (1: the same for all), N rows = K * b, T tokens, D hidden, I in, O out, R rank.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from configs.scenario import Adapter
from strategies.tree import State

Part = Callable[[Tensor, Tensor], Tensor]  # (x_NTI, y_NTO) -> y_NTO with the adapter applied


class Kind(NamedTuple):
    """An adapter kind that changes the output of linear modules.

    All functions speak of one target module; tensors are named by their suffix after the module's name.
    """

    init: Callable[[Adapter, nn.Module, torch.Generator], State]  # one user's start; it must leave the model unchanged
    constants: Callable[[Adapter, nn.Module, torch.Generator], State]  # frozen factors, the same for every user
    part: Callable[[Adapter, State, State], Part]  # (config, parameters with a leading K, constants) -> closure


def sizes(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of an `nn.Linear` or of GPT-2's `Conv1D`."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.weight.shape[0], module.weight.shape[1]  # type: ignore[union-attr,return-value,index]


def weight_OI(module: nn.Module) -> Tensor:  # noqa: N802 - shape suffix
    """The frozen weight as [d_out, d_in], whatever way round the module keeps it."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight if isinstance(module, nn.Linear) else weight.T


def per_user(x_NTI: Tensor, users: int) -> Tensor:
    """Rows sorted by user, [N, T, I] -> [K, b * T, I]."""
    return x_NTI.reshape(users, -1, x_NTI.shape[-1])


def times(x_NTI: Tensor, w_KOI: Tensor) -> Tensor:
    """X W^T with each user's own W, [N, T, O]; one plain product where K is 1 and all users have W in common."""
    w = w_KOI.to(x_NTI.dtype)
    if w.shape[0] == 1:
        return F.linear(x_NTI, w[0])
    return torch.bmm(per_user(x_NTI, w.shape[0]), w.transpose(1, 2)).view(*x_NTI.shape[:-1], w.shape[1])


def add_times(y_NTO: Tensor, x_NTI: Tensor, w_KOI: Tensor) -> Tensor:
    """Y + x W^T with each user's own W, in one batched product, [N, T, O]."""
    w = w_KOI.to(x_NTI.dtype)
    if w.shape[0] == 1:
        return y_NTO + F.linear(x_NTI, w[0])
    users = w.shape[0]
    return torch.baddbmm(per_user(y_NTO, users), per_user(x_NTI, users), w.transpose(1, 2)).view_as(y_NTO)

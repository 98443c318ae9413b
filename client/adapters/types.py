"""What an adapter kind is.

Shape suffixes: K users of a pass (1: the same for all), u privacy units of each, N rows = K * b, T tokens, D hidden, I in, O out,
R rank. A parameter [K, ...] is one per user. In training with differential privacy it comes as [K, u, ...], equal along u.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

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


def times(x_NTI: Tensor, w: Tensor) -> Tensor:
    """X W^T with each user's own W [K, O, I], as [N, T, O]; one plain product where K is 1 and all users have W in common.

    W may be [K, u, O, I], equal along u: a user's rows then belong to u privacy units, each of which gets a gradient of its own.
    """
    if w.dim() == 4 and w.shape[1] > 1:
        return cast(Tensor, _PerUnit.apply(x_NTI, w, None))
    w = _plain(w).to(x_NTI.dtype)
    if w.shape[0] == 1:
        return F.linear(x_NTI, w[0])
    return torch.bmm(per_user(x_NTI, w.shape[0]), w.transpose(1, 2)).view(*x_NTI.shape[:-1], w.shape[1])


def add_times(y_NTO: Tensor, x_NTI: Tensor, w: Tensor) -> Tensor:
    """Y + x W^T like `times`, in one batched product where each user has one W."""
    if w.dim() == 4 and w.shape[1] > 1:
        return cast(Tensor, _PerUnit.apply(x_NTI, w, y_NTO))
    w = _plain(w).to(x_NTI.dtype)
    if w.shape[0] == 1:
        return y_NTO + F.linear(x_NTI, w[0])
    users = w.shape[0]
    return torch.baddbmm(per_user(y_NTO, users), per_user(x_NTI, users), w.transpose(1, 2)).view_as(y_NTO)


def _plain(w: Tensor) -> Tensor:
    return w[:, 0] if w.dim() == 4 else w


class _PerUnit(torch.autograd.Function):
    """Y + x W^T forward as for K users; backward a gradient of W for each of the K * u units, from as many multiplications."""

    @staticmethod
    def forward(ctx: Any, x_NTI: Tensor, w_KuOI: Tensor, y_NTO: Tensor | None) -> Tensor:
        w_KOI = w_KuOI[:, 0].to(x_NTI.dtype)
        ctx.save_for_backward(x_NTI, w_KOI)
        ctx.units, users, w_KIO = w_KuOI.shape[1], len(w_KOI), w_KOI.transpose(1, 2)
        if y_NTO is not None:
            return torch.baddbmm(per_user(y_NTO, users), per_user(x_NTI, users), w_KIO).view_as(y_NTO)
        return torch.bmm(per_user(x_NTI, users), w_KIO).view(*x_NTI.shape[:-1], w_KIO.shape[2])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x_NTI, w_KOI = ctx.saved_tensors
        users, units = len(w_KOI), len(w_KOI) * ctx.units
        back = torch.bmm(per_user(slopes[0], users), w_KOI).view_as(x_NTI) if ctx.needs_input_grad[0] else None
        each = _outer(per_user(slopes[0], units), per_user(x_NTI, units))
        return back, each.unflatten(0, (users, ctx.units)).float(), slopes[0] if ctx.needs_input_grad[2] else None


def _outer(s_NTO: Tensor, x_NTI: Tensor) -> Tensor:
    """S^T X, [N, O, I]; where O is the larger, as the transpose of X^T S, which a batched product does in half the time."""
    if s_NTO.shape[2] > x_NTI.shape[2]:
        return torch.bmm(x_NTI.transpose(1, 2), s_NTO).transpose(1, 2)
    return torch.bmm(s_NTO.transpose(1, 2), x_NTI)

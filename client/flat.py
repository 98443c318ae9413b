"""Trained parameters of a cohort in one matrix: a row per user, a column per number.

Rows make what belongs to a user explicit: the optimizer gets one parameter per user (so its state is per user, and a user who has
finished is simply not stepped), norms are row norms, moving a user's state is one copy.

Shape suffixes: K users, u privacy units of each, P numbers per user.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from configs.scenario import Local
from strategies.tree import State

ROUNDING = 1 - 1e-5  # keeps a clipped norm below its bound in float32


class Flat:
    """theta_KP and grad_KP with named views."""

    def __init__(self, stacked: State) -> None:
        self.shapes = {name: value.shape[1:] for name, value in stacked.items()}
        users = next(iter(stacked.values())).shape[0]
        self.theta_KP = torch.cat([v.reshape(users, -1).float() for v in stacked.values()], 1)
        self.grad_KP = torch.zeros_like(self.theta_KP)

    def views(self, matrix_KP: Tensor) -> State:
        """The matrix cut up by name, without copying."""
        columns = matrix_KP.split([shape.numel() for shape in self.shapes.values()], 1)
        rows = len(matrix_KP)
        return {n: c.view(rows, *s) for (n, s), c in zip(self.shapes.items(), columns, strict=True)}

    def leaves(self, users: int) -> State:
        """Leaves for autograd that show the first ``users`` rows of theta, without copying."""
        return {name: value.detach().requires_grad_() for name, value in self.views(self.theta_KP[:users]).items()}

    def accumulate(self, loss: Tensor, leaves: State) -> None:
        """Add the gradient of a scalar with respect to ``leaves`` into grad_KP. A leaf that the loss lacks adds nothing."""
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for slope, view in zip(slopes, self.views(self.grad_KP[: len(next(iter(leaves.values())))]).values(), strict=True):
            if slope is not None:
                view += slope

    def leaves_per_unit(self, users: int, units: int) -> State:
        """Leaves [K, u, ...] that show each of the first ``users`` rows u times, without copying: each unit gets its own gradient."""
        shown = {n: v.unsqueeze(1).expand(-1, units, *v.shape[1:]) for n, v in self.views(self.theta_KP[:users]).items()}
        return {name: value.detach().requires_grad_() for name, value in shown.items()}

    def accumulate_clipped(self, loss: Tensor, leaves: State, clip: float) -> None:
        """Add up each user's units' gradients, each scaled to an L2 norm of at most ``clip`` over all leaves.

        A unit whose gradient is not finite adds nothing.
        """
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        found = {n: _dense(slope.float()) for n, slope in zip(leaves, slopes, strict=True) if slope is not None}
        norm_Ku = torch.stack([torch.linalg.vector_norm(part, dim=2) for part, _ in found.values()]).norm(dim=0)
        scale_Ku = (clip * ROUNDING / norm_Ku.clamp(min=1e-12)).clamp(max=1.0)
        if not bool(norm_Ku.isfinite().all()):
            sane_Ku1 = norm_Ku.isfinite().unsqueeze(2)
            scale_Ku = scale_Ku.nan_to_num(0.0)
            found = {n: (part.where(sane_Ku1, 0.0), turned) for n, (part, turned) in found.items()}
        views = self.views(self.grad_KP[: len(scale_Ku)])
        for name, (part, turned) in found.items():
            view = views[name].mT if turned else views[name]
            view += torch.bmm(scale_Ku.unsqueeze(1), part).view(view.shape)

    def state(self) -> State:
        """A copy, stacked by user."""
        return {name: value.clone() for name, value in self.views(self.theta_KP).items()}


def _dense(slope: Tensor) -> tuple[Tensor, bool]:
    """[K, u, ...] as [K, u, numbers] without copying, and whether the last two axes lie the other way round."""
    turned = slope.dim() > 3 and slope.stride(-1) > slope.stride(-2)
    return (slope.mT if turned else slope).flatten(2), turned


class Pull(NamedTuple):
    """(strength / 2) |theta - anchor|^2 beside every user's loss."""

    anchor_KP: Tensor
    strength: float


class RowOptimizer:
    """A torch optimizer whose parameters are the rows of a `Flat`, with a per-user clip and a pull towards a start.

    The pull of user k is ``weight_decay + prior / n_k``. With sgd it is part of the gradient (after the clip), so that the
    iteration ends at the maximum a posteriori, and its step is ``lr / (1 + prior / n_k)``: a prior adds that much to the curvature,
    and noise for privacy then moves a user of few examples no further than one of many. With adamw the pull is decoupled, as that
    optimizer's own decay is.

    A `Pull` to something else than the start is taken as a proximal step after the optimizer's, theta <- (theta + lr s anchor) /
    (1 + lr s): any strength is stable, and sgd comes to rest where gradient + s (theta - anchor) = 0. ``mask_KP``: 0 where a number has
    no gradient, noise included. ``shift_KP`` is added to every gradient after its clip.
    """

    def __init__(self, flat: Flat, local: Local, examples: Sequence[int], pull: Pull | None = None,
                 mask_KP: Tensor | None = None, shift_KP: Tensor | None = None) -> None:  # fmt: skip
        self.pull, self.mask_KP, self.shift_KP = pull, mask_KP, shift_KP
        self.flat, self.lr, self.max_norm, self.plain = flat, local.lr, local.max_norm, local.optimizer == "sgd"
        prior_K1 = torch.tensor([local.prior / max(n, 1) for n in examples], device=flat.theta_KP.device).unsqueeze(1)
        self.pull_K1, self.shorter_K1 = local.weight_decay + prior_K1, 1 / (1 + prior_K1)
        self.start_KP = flat.theta_KP.clone() if local.weight_decay or local.prior else None
        self.rows = [torch.nn.Parameter(row) for row in flat.theta_KP]
        self.torch: torch.optim.Optimizer
        if self.plain:
            self.torch = torch.optim.SGD(self.rows, lr=local.lr, momentum=local.momentum)
        else:
            fused = flat.theta_KP.device.type in ("cpu", "cuda", "mps")
            self.torch = torch.optim.AdamW(self.rows, lr=local.lr, weight_decay=0.0, fused=fused)

    @torch.no_grad()
    def step(self, active: Sequence[int]) -> None:
        """Step the rows named in ``active``; all others, with their moments, stay as they are."""
        index = torch.tensor(active, device=self.flat.theta_KP.device)
        if self.mask_KP is not None:
            self.flat.grad_KP[index] *= self.mask_KP[index]
        if self.max_norm:
            norms = torch.linalg.vector_norm(self.flat.grad_KP[index], dim=1, dtype=torch.float32)
            scale = (self.max_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
            self.flat.grad_KP[index] *= scale[:, None]
        if self.shift_KP is not None:
            self.flat.grad_KP[index] += self.shift_KP[index]
        if self.start_KP is not None and self.plain:
            self.flat.grad_KP[index] = (self.flat.grad_KP[index] + self._away(index)) * self.shorter_K1[index]
        for row in self.rows:
            row.grad = None
        for k in active:
            self.rows[k].grad = self.flat.grad_KP[k]
        self.torch.step()
        if self.start_KP is not None and not self.plain:
            self.flat.theta_KP[index] -= self.lr * self._away(index)
        if self.pull is not None:
            weight = self.lr * self.pull.strength
            self.flat.theta_KP[index] = (self.flat.theta_KP[index] + weight * self.pull.anchor_KP[index]) / (1 + weight)

    def _away(self, index: Tensor) -> Tensor:
        """How far rows lie from their start, times their pull."""
        assert self.start_KP is not None
        return (self.flat.theta_KP[index] - self.start_KP[index]) * self.pull_K1[index]

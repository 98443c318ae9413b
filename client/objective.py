"""Objectives: what the final hidden states are asked for. Next token, answer after a prompt, choice among labels.

A row's loss is the mean over its own positions, never over the batch's: otherwise one user's gradient would depend on
how long another's texts are.

Shape suffixes: M predicting positions, N rows, D hidden, V vocabulary, L labels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from client.base import Base
from client.tower import Predicting

CHUNK = 2048  # positions whose logits over the whole vocabulary exist at one time


def token_losses(base: Base, at: Predicting) -> Tensor:
    """Cross-entropy of the next token at each position, [M] in nats, float32. The head runs in chunks."""
    losses: Tensor = _ChunkedHead.apply(at.hidden_MD, at.target_M, lambda z: logits(base, z))  # type: ignore[assignment]
    return losses


def choice_logits(base: Base, at: Predicting, label_ids: tuple[int, ...]) -> Tensor:
    """Logits of the labels' first tokens at each row's last position, [N, L] float32."""
    head = base.model.get_output_embeddings()
    index = torch.tensor(label_ids, device=head.weight.device)
    bias = head.bias[index] if getattr(head, "bias", None) is not None else None
    return _shape(base, F.linear(at.hidden_MD, head.weight[index], bias)).float()


def row_losses(base: Base, at: Predicting, rows: int, label_ids: tuple[int, ...]) -> Tensor:
    """Mean loss of each row, [N] float32: over the labels for a choice, else over the row's own predicted tokens; 0 without any."""
    choice = bool(label_ids)
    losses = F.cross_entropy(choice_logits(base, at, label_ids), at.target_M, reduction="none") if choice else token_losses(base, at)
    count = torch.bincount(at.row_M, minlength=rows).clamp(min=1)
    return torch.zeros(rows, device=losses.device).index_add(0, at.row_M, losses) / count


def logits(base: Base, hidden: Tensor) -> Tensor:
    """The frozen head with the scaling or soft cap that some architectures put after it."""
    return _shape(base, base.model.get_output_embeddings()(hidden))


def _shape(base: Base, raw: Tensor) -> Tensor:
    config = base.model.config
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        raw = raw * scale
    if (scale := getattr(config, "logits_scaling", None)) is not None:  # Granite
        raw = raw / scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
        raw = torch.tanh(raw / cap) * cap
    return raw


class _ChunkedHead(torch.autograd.Function):
    """Losses and their gradient to the hidden states, chunk by chunk, so that the logits never exist all at once."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, target_M: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        losses, slopes = [], []
        for rows, target in zip(hidden_MD.split(CHUNK), target_M.split(CHUNK), strict=True):
            z = rows.detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                loss = F.cross_entropy(head(z).float(), target, reduction="none")
            if wanted:
                slopes.append(torch.autograd.grad(loss, z, torch.ones_like(loss))[0])
            losses.append(loss.detach())
        if wanted:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope_MD,) = ctx.saved_tensors
        return slope_MD * grads[0].unsqueeze(1).to(slope_MD.dtype), None, None

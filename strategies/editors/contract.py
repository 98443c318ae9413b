"""What an editor is: from what goes into one linear module, and a loss, to a small change of its weight; many edits side by side.

An edit changes W by B A, with A [r, I] and B [O, r] as a LoRA of scale one has them. It is learnt by itself, on the user's model
without other edits; which edits stand together is decided in `Editor.merge`, so the order in which they came is forgotten, and one
that is taken back leaves nothing behind.

Shape suffixes: E edits side by side, P positions of an edit where something is predicted, M positions of ordinary texts, R rank, I in,
O out of the module.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.tree import State

A, B = "lora_A.weight", "lora_B.weight"  # PEFT's names of the two factors


class Lesson(NamedTuple):
    """What an editor is given."""

    keys_EPI: Tensor  # what goes into the module at the edited positions; rows of zeros where an edit has fewer than another
    ordinary_MI: Tensor  # and over ordinary texts
    outputs: int  # O
    loss: Callable[
        [Tensor, Tensor], tuple[Tensor, Tensor]
    ]  # (A [E, R, I], B [E, O, R]) -> mean nll of the answer, KL elsewhere; [E] each
    key: tuple[object, ...]  # of randomness


class Editor(NamedTuple):
    """How an edit comes about."""

    paper: str
    learn: Callable[[Lesson], State]  # what is kept of each edit, with an axis E in front
    merge: Callable[[list[State]], State]  # of what is kept of a user's edits -> their common A and B
    drifts: bool = False  # its loss needs the KL on ordinary texts


def descend(loss: Callable[[], Tensor], leaves: list[Tensor], steps: int, lr: float) -> None:
    """Adam on tensors with an axis E in front, of which no edit's loss knows another's. ``loss`` is the sum over edits."""
    optimizer = torch.optim.Adam(leaves, lr)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(loss(), inputs=leaves)
        optimizer.step()


def short(nll_E: Tensor, sure: float) -> Tensor:
    """How far each answer is from a probability of ``sure``, in nats per token; an edit that is there pulls no further."""
    return (nll_E + torch.log(torch.tensor(sure, device=nll_E.device))).clamp(min=0.0)

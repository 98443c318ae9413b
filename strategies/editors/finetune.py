"""Fine-tuning: a few steps on the answer with a small LoRA, held near the old answers on ordinary texts; the baseline.

Constrained fine-tuning (Zhu et al., "Modifying Memories in Transformer Models", arXiv 2012.00363) bounds how far weights may go; here

    short of the answer  +  kl KL(old || new) on ordinary texts  +  decay (|A - A_0|^2 + |B|^2)

over a LoRA of rank ``rank`` on one module. Deviations: penalties instead of a bound, a LoRA instead of the whole weight. Several edits
are added up, and nothing keeps one from moving another's prompt.
"""

import torch
from torch import Tensor

from strategies.editors.contract import A, B, Editor, Lesson, descend, short
from strategies.options import within
from strategies.tree import State, generator


def finetune(rank: float = 4, kl: float = 1.0, sure: float = 0.9, steps: float = 30, lr: float = 0.01, decay: float = 1e-3) -> Editor:
    """Train a small LoRA on the answer."""
    within("rank", rank, 1, 64, "option")
    within("sure", sure, 0.5, 0.9999, "option")

    def learn(lesson: Lesson) -> State:
        count, _, columns = lesson.keys_EPI.shape
        drawn = torch.empty(int(rank), columns).uniform_(-(columns**-0.5), columns**-0.5, generator=generator(*lesson.key, "finetune"))
        start = drawn.to(lesson.keys_EPI)
        a = start.expand(count, -1, -1).clone().requires_grad_()
        b = start.new_zeros(count, lesson.outputs, int(rank)).requires_grad_()

        def loss() -> Tensor:
            nll_E, kl_E = lesson.loss(a, b)
            gone_E = (a - start).square().sum((1, 2)) + b.square().sum((1, 2))
            return (short(nll_E, sure) + kl * kl_E + decay * gone_E).sum()

        descend(loss, [a, b], int(steps), lr)
        return {A: a.detach(), B: b.detach()}

    def merge(edits: list[State]) -> State:
        return {A: torch.cat([edit[A] for edit in edits]), B: torch.cat([edit[B] for edit in edits], 1)}

    return Editor("arXiv 2012.00363", learn, merge, drifts=True)

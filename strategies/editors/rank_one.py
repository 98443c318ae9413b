"""Rank one: the smallest change of one module's weight, as ordinary texts feel it, that makes its output at the prompt another.

Meng et al., "Locating and Editing Factual Associations in GPT", NeurIPS 2022, arXiv 2202.05262 (ROME), eq. 2, and Meng et al.,
"Mass-Editing Memory in a Transformer", ICLR 2023, arXiv 2210.07229 (MEMIT), eq. 14. With keys K [P, I] (what goes into the module where
the answer is predicted), changes R [P, O] of its output there, and C [I, I] the mean of x x^T over ordinary texts:

    minimize  tr(D C D^T)  such that  D K^T = R^T:      D = B A,   A = (K C^-1 K^T + damp I)^-1 K C^-1,   B = R^T

R is found by a few steps of Adam on the answer's loss, a mean over the edit's prompts, plus ``decay`` times that of |r|^2, through D
as it will be applied: an edit that shows a prompt twice is the edit that shows it once. C is made regular by ``ridge`` of its mean
diagonal. Several edits are solved for together: K and R are then those of all, so that each has its own change at its own keys.

Deviations: keys are taken at the positions that predict the answer, as no subject is marked in the prompt, one for each token; not
averaged over random prefixes; C is that of the base without adapters; no KL term, as C holds to ordinary texts; an answer that is sure
enough is not pushed further.
"""

import torch
from torch import Tensor

from strategies.editors.contract import A, B, Editor, Lesson, descend, short
from strategies.options import within
from strategies.tree import State

KEY, WHITE, VALUE = "key", "white", "value"  # K [P, I], K C^-1 [P, I], R [P, O]


def rank_one(
    ridge: float = 0.1, damp: float = 1e-4, sure: float = 0.9, steps: float = 60, lr: float = 0.1, decay: float = 3e-4
) -> Editor:
    """Change the module's output at the prompt, and as little as can be at ordinary inputs."""
    within("ridge", ridge, 1e-6, 1e6, "option")
    within("sure", sure, 0.5, 0.9999, "option")

    def learn(lesson: Lesson) -> State:
        keys, white = lesson.keys_EPI, whitened(lesson.keys_EPI, lesson.ordinary_MI, ridge)
        a = solved(keys, white, damp)
        shown_E = (keys != 0).any(2).sum(1).clamp(min=1)
        value = torch.zeros(*keys.shape[:2], lesson.outputs, device=keys.device, requires_grad=True)

        def loss() -> Tensor:
            nll_E, _ = lesson.loss(a, value.mT)
            return (short(nll_E, sure) + decay * value.square().sum((1, 2)) / shown_E).sum()

        descend(loss, [value], int(steps), lr)
        return {KEY: keys, WHITE: white, VALUE: value.detach()}

    def merge(edits: list[State]) -> State:
        key, white, value = (torch.cat([edit[name] for edit in edits]) for name in (KEY, WHITE, VALUE))
        return {A: solved(key, white, damp), B: value.mT}

    return Editor("arXiv 2202.05262", learn, merge)


def whitened(keys_EPI: Tensor, ordinary_MI: Tensor, ridge: float) -> Tensor:
    """K C^-1."""
    c_II = ordinary_MI.double().mT @ ordinary_MI.double() / max(1, len(ordinary_MI))
    c_II.diagonal().add_(ridge * c_II.diagonal().mean().clamp(min=1e-12))
    return torch.cholesky_solve(keys_EPI.double().mT, torch.linalg.cholesky(c_II)).mT.to(keys_EPI)


def solved(key: Tensor, white: Tensor, damp: float) -> Tensor:
    """(K C^-1 K^T + damp I)^-1 K C^-1, the damping in units of the mean diagonal; a row of zeros stays one."""
    gram = white.double() @ key.double().mT
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.sum(-1) / (diagonal > 0).sum(-1).clamp(min=1)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + (damp * mean.clamp(min=1e-12))[..., None, None] * eye, white.double()).to(white)

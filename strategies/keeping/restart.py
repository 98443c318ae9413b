"""Restart: what was learnt is merged into a frozen sum, and a new LoRA begins at right angles to it.

As in O-LoRA (arXiv 2310.14152) with the orthogonality in the start instead of in the loss, which is how SLAO ("Merge before Forget",
arXiv 2512.23017) begins a task. The frozen sum is kept as the factors that it is made of, so that it is exact.
"""

import torch

from strategies.keeping.contract import A, Keeping, Lesson, modules, remembered, summed
from strategies.keeping.olora import PAST, drawn, memory, put_by, zeros
from strategies.tree import State


def restart() -> Keeping:
    """Freeze what was learnt and begin a new LoRA whose A is orthogonal to all earlier ones."""

    def begin(state: State, lesson: Lesson) -> State:
        found = put_by(state)
        new = {n + A: apart(drawn(state[n + A], n, lesson), found[remembered(n, PAST) + A]) for n in modules(state)}
        return found | new | zeros(state)

    return Keeping("arXiv 2512.23017", memory, begin, summed(PAST), kinds=("lora",))


def apart(a: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    """A without its part in the span of the past's rows, each row as long as before; where they span everything, A itself."""
    _, sizes, basis = torch.linalg.svd(past.double(), full_matrices=False)
    basis = basis[sizes > 1e-9 * sizes.max().clamp(min=1e-30)]
    left = a.double() - a.double() @ basis.T @ basis
    left = left - left @ basis.T @ basis  # twice is enough (Kahan)
    norms = left.norm(dim=1, keepdim=True)
    scaled = left * (a.double().norm(dim=1, keepdim=True) / norms.clamp(min=1e-30))
    return torch.where(norms > 1e-6, scaled, a.double()).to(a)

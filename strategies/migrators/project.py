"""Cross-LoRA and LoRA-X: the change follows the leading singular directions of its module from the old weight to the new one.

Xia et al., "Cross-LoRA: A Data-Free LoRA Transfer Framework across Heterogeneous LLMs", arXiv 2508.05232, sections 3.2 and 3.3, and
Farhadzadeh et al., "LoRA-X: Bridging Foundation Models with Training-Free Cross-Model Adaptation", ICLR 2025, arXiv 2501.16559, eq. 4:

    W ~ U S V,  W' ~ U' S' V'  (k leading ones),   Q = argmin |U' Q - U|,  P = argmin |V'^T P - V^T|,   dW' = U' Q U^T dW V^T P^T V'

Deviations: Q and P are orthogonal (Procrustes), so that a base and itself give the projection on the retained directions and nothing
else; and with ``keep`` what lies outside of them stays as it is, which bases of equal shapes allow: dW' = (1 + (U' Q - U) U^T) dW
(...), which is all of dW from a base to itself. ``keep=0`` is the papers' cut. Layers are counted from the top.

Shape suffixes: D outputs or inputs, K retained directions, R ranks.
"""

import torch
from torch import Tensor

from strategies.lora import signed
from strategies.migrators.terms import PROMPT, Ground, Migrator, Turn, Way, Ways, from_top, refuse_shapes
from strategies.options import within


def project(rank: float = 128, keep: float = 1) -> Migrator:
    """Build it with so many retained directions of each weight."""
    retained = int(within("rank", rank, 1, 2**20, "options"))
    whole = bool(within("keep", keep, 0, 1, "options"))

    def ways(old: Ground, new: Ground) -> Ways:
        found = from_top(old, new)
        refuse_shapes("project", found, old, new)
        return {m: _way(way, old, new, m, retained, whole) for m, way in found.items()}

    return Migrator("arXiv 2508.05232", ways, same_shapes=True, exact=whole)


def _way(way: Way, old: Ground, new: Ground, module: str, rank: int, keep: bool) -> Way:
    if module == PROMPT:
        return way
    there, here = frames(old.weights[way.source], rank), frames(new.weights[module], rank)
    return Way(way.source, *(follow(x, y, keep) for x, y in zip(there, here, strict=True)))


def frames(w_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading left and right singular vectors of a weight as columns, [O, K] and [I, K], float64."""
    u, s, v = torch.linalg.svd(w_OI.detach().double().cpu(), full_matrices=False)
    u, _, v = signed(u[:, :rank], s[:rank], v[:rank])
    return u, v.T


def follow(old_DK: Tensor, new_DK: Tensor, keep: bool) -> Turn:
    """The map that takes the old directions to the new frame that is nearest to them."""
    u, _, v = torch.linalg.svd(new_DK.T @ old_DK, full_matrices=False)
    aligned_DK = new_DK @ (u @ v)

    def apply(x_DR: Tensor) -> Tensor:
        inside_KR = old_DK.T @ x_DR.double().cpu()
        moved = x_DR.double().cpu() + (aligned_DK - old_DK) @ inside_KR if keep else aligned_DK @ inside_KR
        return moved.to(x_DR)

    return Turn(apply)

"""How near a text is to a user's own: the mean cosine of what the bare base makes of them, at the last position that predicts.

Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024, arXiv 2403.19211, section 4.3: the weight of
adapters by instance. Nothing of it leaves the node: references are raw private data.

Shape suffixes: n texts, S references, D hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from client.data.types import Encoded
from client.tower import Tower
from strategies.schemes.copies import SIMILARITY as NEAR
from strategies.tree import generator

ROWS = 64  # texts in a pass

__all__ = ["NEAR", "sampled", "similarity"]


def sampled(examples: Sequence[Encoded], count: int, key: tuple[object, ...]) -> list[Encoded]:
    """So many of a user's examples, drawn once for a run."""
    order = torch.randperm(len(examples), generator=generator(*key, "references"))
    return [examples[i] for i in order[:count].tolist()]


def similarity(tower: Tower, texts: Sequence[Encoded], references: Sequence[Encoded]) -> Tensor:
    """Mean cosine of each text with the references, [n] in -1..1; 0 without a reference."""
    if not texts or not references:
        return torch.zeros(len(texts), device=tower.base.device)
    return (_embedded(tower, texts) @ _embedded(tower, references).T).mean(1)


@torch.no_grad()
def _embedded(tower: Tower, texts: Sequence[Encoded]) -> Tensor:
    """Unit vectors [n, D]."""
    found = []
    for first in range(0, len(texts), ROWS):
        part = texts[first : first + ROWS]
        at = tower(part, [])
        last_N = torch.bincount(at.row_M, minlength=len(part)).cumsum(0) - 1
        found.append(F.normalize(at.hidden_MD[last_N].float(), dim=1))
    return torch.cat(found)

"""Forward passes for evaluation: what the model says about each example, for many users at once.

Shape suffixes: n examples of a user, L labels, K users.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from client.data.types import Encoded
from client.objective import choice_logits, token_losses
from client.planner import step_passes, token_budget
from client.tower import Blocks, Tower
from configs.scenario import Engine
from strategies.tree import State

ROWS = 64  # examples of one user in a pass, at most


@torch.no_grad()
def scores(tower: Tower, blocks: Blocks, work: Sequence[Sequence[Encoded]], engine: Engine,
           label_ids: tuple[int, ...]) -> list[Tensor]:  # fmt: skip
    """Score every user's examples. ``blocks`` has a leading axis of one, or of ``len(work)``.

    Returns one float32 tensor per user: the labels' logits [n, L] for a choice, else [n, 2] (sum of losses in nats, tokens).
    """
    columns = len(label_ids) or 2
    found = [torch.zeros(len(examples), columns) for examples in work]
    common = all(value.shape[0] == 1 for _, state in blocks for value in state.values())
    if common:
        return _common(tower, blocks, work, engine, label_ids, columns)
    longest = max((tower.positions(e) for examples in work for e in examples), default=1)
    width = max(1, token_budget(tower, engine, 0, 1) // (longest * min(ROWS, max(map(len, work), default=1))))
    for first in range(0, len(work), width):
        group = [k for k in range(first, min(first + width, len(work))) if len(work[k])]
        if group:
            _score_group(tower, _rows(blocks, group), group, work, engine, label_ids, found)
    return found


def mean_losses(tower: Tower, blocks: Blocks, work: Sequence[Sequence[Encoded]], engine: Engine,
                label_ids: tuple[int, ...]) -> Tensor:  # fmt: skip
    """Each user's mean loss, [K] in nats per token or per choice; NaN for a user without examples."""
    device = tower.base.device
    found = [nats(s, examples) for s, examples in zip(scores(tower, blocks, work, engine, label_ids), work, strict=True)]
    return torch.stack([loss_n.sum() / count_n.sum() for loss_n, count_n in found]).to(device)


def nats(score: Tensor, examples: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Each example's loss in nats, a sum, and over how many tokens (of a choice: one); [n] each, of what `scores` says of them."""
    label_n = torch.tensor([e.label for e in examples], dtype=torch.long)
    if (label_n < 0).any():
        return score[:, 0], score[:, 1]
    return F.cross_entropy(score, label_n, reduction="none"), torch.ones(len(examples))


def _common(tower: Tower, blocks: Blocks, work: Sequence[Sequence[Encoded]], engine: Engine, label_ids: tuple[int, ...],
            columns: int) -> list[Tensor]:  # fmt: skip
    """Without anything of a user's own, equal examples score equally: each distinct one is run once."""
    distinct = {e.key: e for examples in work for e in examples}
    order = sorted(distinct, key=lambda key: distinct[key].length)
    table: dict[bytes, Tensor] = {}
    budget, first = token_budget(tower, engine, 0, 1), 0
    while first < len(order):
        count = max(1, budget // tower.positions(distinct[order[min(first + 255, len(order) - 1)]]))
        keys = order[first : first + min(count, 256)]
        for key, row in zip(keys, _run(tower, blocks, [distinct[k] for k in keys], label_ids), strict=True):
            table[key] = row
        first += len(keys)
    empty = torch.zeros(0, columns)
    return [torch.stack([table[e.key] for e in x]) if len(x) else empty for x in work]


def _score_group(tower: Tower, blocks: Blocks, group: list[int], work: Sequence[Sequence[Encoded]], engine: Engine,
                 label_ids: tuple[int, ...], found: list[Tensor]) -> None:  # fmt: skip
    budget = token_budget(tower, engine, 0, 1)
    for part in step_passes([work[k] for k in group], tower, budget):
        rows = _run(tower, blocks, part.examples, label_ids)
        height = len(part.examples) // part.users
        for index, source in enumerate(part.source_N):
            if source >= 0:
                found[group[index // height]][source] = rows[index]


def _run(tower: Tower, blocks: Blocks, examples: Sequence[Encoded], label_ids: tuple[int, ...]) -> Tensor:
    at = tower(examples, blocks)
    if label_ids:
        return choice_logits(tower.base, at, label_ids).cpu()
    losses, row = token_losses(tower.base, at).cpu(), at.row_M.cpu()
    total = torch.zeros(len(examples)).index_add(0, row, losses)
    return torch.stack([total, torch.bincount(row, minlength=len(examples)).float()], 1)


def _rows(blocks: Blocks, group: list[int]) -> Blocks:
    def pick(state: State) -> State:
        return {n: v if v.shape[0] == 1 else v[group] for n, v in state.items()}

    return [(layout, pick(state)) for layout, state in blocks]

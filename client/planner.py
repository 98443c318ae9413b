"""Which users train side by side, and what goes into each pass, inside a budget of tokens or memory.

Users are sorted by how much they have, so that few rows are fillers and those still training are always the first rows of a
cohort: a user who has finished costs nothing more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.data.types import Encoded
from client.tower import Tower
from configs.scenario import Engine

GRADIENTS = 2**26  # numbers that gradients of single privacy units may take in a pass: 256 MiB


@dataclass(frozen=True)
class Pass:
    """Rows of one forward and backward. The first ``users`` of the cohort take part, with the same number of rows each."""

    users: int
    examples: tuple[Encoded, ...]  # users * b, sorted by user; where a user has fewer, their first one fills up
    weight_N: Tensor  # float32: 1 / (examples of that user in this step), 0 for fillers
    source_N: tuple[int, ...]  # index of the example within the user's batch; -1 for fillers
    units: int = 0  # privacy units of each user, where each needs a gradient of its own


def cohorts(work: Sequence[Sequence[Encoded]], batch: int, tower: Tower, engine: Engine, numbers: int) -> list[list[int]]:
    """Group users (by index into ``work``, their examples) into cohorts that train side by side.

    ``numbers`` is how many a user trains. A cohort's widest step stays inside the token budget, except that one user
    alone always may run (their step is then cut into several passes).
    """
    longest = [max((tower.positions(e) for e in examples), default=1) for examples in work]
    order = sorted(range(len(work)), key=lambda k: (-len(work[k]), -longest[k], k))
    budget = token_budget(tower, engine, numbers, batch)
    groups: list[list[int]] = []
    widest = rows = 0
    for k in order:
        widest, rows = max(widest, longest[k]), max(rows, min(batch, len(work[k])))
        if groups and (len(groups[-1]) + 1) * rows * widest <= budget:
            groups[-1].append(k)
        else:
            groups.append([k])
            widest, rows = longest[k], min(batch, len(work[k]))
    return groups


def token_budget(tower: Tower, engine: Engine, numbers: int, batch: int) -> int:
    """Computed positions that a pass may hold: the scenario's, or what an estimate of memory allows, if that is less."""
    if not engine.memory_mb:
        return engine.tokens_per_pass
    config = tower.base.model.config
    width = config.hidden_size * 14 + getattr(config, "intermediate_size", 4 * config.hidden_size) * 5
    per_token = width * tower.depth() * tower.base.model.dtype.itemsize
    per_user = numbers * 4 * 4  # theta, gradient and two moments in float32
    return max(1, min(engine.tokens_per_pass, engine.memory_mb * 2**20 // (per_token + per_user // batch)))


def step_passes(batches: Sequence[Sequence[Encoded]], tower: Tower, budget: int) -> Iterator[Pass]:
    """Cut one step of a cohort (each user's batch) into passes of at most ``budget`` positions.

    Weights add up to one per user over the passes of the step, so gradients add up to those of the user's mean loss.
    """
    users = len(batches)
    longest = max(tower.positions(e) for batch in batches for e in batch)
    rows = max(len(batch) for batch in batches)
    height = max(1, min(rows, budget // (users * longest)))
    for first in range(0, rows, height):
        filled = [[i if i < len(b) else -1 for i in range(first, min(first + height, rows))] for b in batches]
        yield Pass(
            users,
            tuple(b[max(i, 0)] for b, row in zip(batches, filled, strict=True) for i in row),
            torch.tensor([1 / len(b) if i >= 0 else 0.0 for b, row in zip(batches, filled, strict=True) for i in row]),
            tuple(i for row in filled for i in row),
        )


def unit_passes(batches: Sequence[Sequence[Sequence[Encoded]]], fillers: Sequence[Encoded], tower: Tower, budget: int,
                numbers: int) -> Iterator[Pass]:  # fmt: skip
    """Cut one guarded step (each user's privacy units) into passes that never part a unit. Every example has weight one.

    A pass also holds a gradient of ``numbers`` for every unit, which `GRADIENTS` bounds. ``fillers``, one for each user, stand
    where one has fewer units than another; where a unit has fewer chunks than another, its own first one does.
    """
    drawn = [e for batch in batches for unit in batch for e in unit]
    if not drawn:
        return
    users, most = len(batches), max(map(len, batches))
    each = max(len(unit) for batch in batches for unit in batch)
    longest = max(tower.positions(e) for e in (*drawn, *fillers))
    height = max(1, min(most, budget // (users * each * longest), GRADIENTS // (users * numbers)))
    for first in range(0, most, height):
        last = min(first + height, most)
        rows = [row for b, own in zip(batches, fillers, strict=True) for row in _unit_rows(b, range(first, last), each, own)]
        source = tuple(i if weight else -1 for i, (_, weight) in enumerate(rows))
        yield Pass(users, tuple(e for e, _ in rows), torch.tensor([weight for _, weight in rows]), source, last - first)


def _unit_rows(batch: Sequence[Sequence[Encoded]], which: range, each: int, filler: Encoded) -> Iterator[tuple[Encoded, float]]:
    for index in which:
        unit = batch[index] if index < len(batch) else ()
        yield from ((e, 1.0) for e in unit)
        yield from ((unit[0] if unit else filler, 0.0) for _ in range(each - len(unit)))

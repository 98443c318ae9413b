"""Fused against one user after the other, and against one adapter on everybody's data. Times are process CPU seconds on one thread."""

from dataclasses import replace

import torch

from simulations.bench.measure import Figure, Result, agree, alternate, mean_state, one_thread
from simulations.bench.ours import Fused
from simulations.bench.theirs import Lean, Pooled, Usual
from simulations.bench.world import LR, Size, local, random_ids, random_model, starts

POOLED_STEPS = 4  # a user's steps in a visit, so that loading is not all there is


@one_thread()
def sequential(name: str, size: Size, repetitions: int) -> dict[str, Figure]:
    """One AdamW step per visit: the engine, the usual client and the leanest one, which must end at the same adapters."""
    model, ids = random_model(size), random_ids(size)
    usual, lean, fused = Usual(model, size), Lean(model, size), Fused(model, size)
    begin, settings = starts(size, fused.layouts), local(size)
    try:
        reached = fused.visit(begin, ids, settings)
        agree(reached, usual.visit(begin, ids), begin)
        agree(reached, lean.visit(begin, ids), begin)
        seconds = alternate(
            {
                "ours": lambda: fused.visit(begin, ids, settings),
                "usual": lambda: usual.visit(begin, ids),
                "lean": lambda: lean.visit(begin, ids),
            },
            repetitions,
        )
    finally:
        fused.close()
    each = {side: found / size.users for side, found in seconds.items()}
    unit = "CPU s per user visit"
    return {name: Figure(each["ours"], each["usual"], unit), f"{name}_lean": Figure(each["ours"], each["lean"], unit)}


@one_thread()
def pooled(name: str, size: Size, repetitions: int) -> dict[str, Figure]:
    """Tokens per CPU second with an adapter for each user, and with one adapter for all in passes of equal size."""
    size = replace(size, blocks=size.blocks[:1])
    model, ids = random_model(size), random_ids(size)
    theirs, fused = Pooled(model, size), Fused(model, size)
    begin, settings = starts(size, fused.layouts), local(size, steps=POOLED_STEPS)
    try:
        _same_mean_step(fused, theirs, size)
        theirs.load(begin[0])
        optimizer = torch.optim.AdamW(theirs.model.parameters(), lr=LR, weight_decay=0.0, fused=True)
        seconds = alternate(
            {
                "ours": lambda: fused.visit(begin, ids, settings),
                "theirs": lambda: theirs.train(ids, optimizer, POOLED_STEPS),
            },
            repetitions,
        )
    finally:
        fused.close()
    tokens = size.tokens_per_pass * POOLED_STEPS
    return {name: Figure(tokens / seconds["ours"], tokens / seconds["theirs"], "tokens per CPU s", higher_is_better=True)}


def _same_mean_step(fused: Fused, theirs: Pooled, size: Size) -> None:
    """From one common start, the mean of all users' SGD steps is the pooled SGD step: shows that both see the same loss."""
    ids, settings = random_ids(size), local(size, "sgd")
    begin = starts(size, fused.layouts)[0]
    each = fused.visit([begin] * size.users, ids, settings)
    theirs.load(begin)
    sgd = torch.optim.SGD([p for p in theirs.model.parameters() if p.requires_grad], lr=settings.lr)
    agree(Result([mean_state(each.states)], each.loss), theirs.train(ids, sgd, 1), [begin])

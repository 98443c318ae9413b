"""How well every user's own model does on each period, in one pass over all of them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from client.data.types import Dataset, Encoded, Splits
from client.node import Node
from strategies.base import Task

ROWS = ("shared_private", "local_only", "shared")  # the first that a scheme has is a user's own model
Scores = dict[str, list[float | None]]  # user -> nll of each period, in nats per choice or token; None: nothing to test on


def tests(periods: Sequence[Dataset]) -> dict[str, list[tuple[Encoded, ...]]]:
    """Every user's test examples, period by period."""
    users = sorted({user for data in periods for user in data.users})
    return {user: [data.users[user].test if user in data.users else () for data in periods] for user in users}


def whole(period: Dataset) -> dict[str, list[tuple[Encoded, ...]]]:
    """All that users have in a period, which before it is trained on is a test."""
    return {user: [(*s.train, *s.validation, *s.test)] for user, s in period.users.items()}


def judged(node: Node, task: Task, work: Mapping[str, Sequence[Sequence[Encoded]]]) -> Scores:
    """Score each user's model, as it is before ``task.round``, on lists of examples."""
    seen, users = copy.copy(node), list(work)
    flat = {user: tuple(e for examples in work[user] for e in examples) for user in users}
    seen.dataset = replace(node.dataset, users={user: Splits((), (), flat[user]) for user in users}, unseen={})
    found = next(scores for row in ROWS if (scores := seen.control(row, task, "test", users)) is not None)
    cut = [score.split([len(examples) for examples in work[user]]) for user, score in zip(users, found, strict=True)]
    return {
        user: [node.metrics(part, e)["nll"] if len(e) else None for part, e in zip(parts, work[user], strict=True)]
        for user, parts in zip(users, cut, strict=True)
    }

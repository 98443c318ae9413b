"""From a scenario's ``data`` to users with encoded splits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from client.data import periods, split, without
from client.data.encode import encode, label_ids
from client.data.sources import SOURCES
from client.data.types import Dataset, Encoded, Example, Source, Splits
from configs.errors import InputError, unknown
from configs.life import Life
from configs.scenario import Data

ALL = Life()  # all data at once
TASKS = {"": ("text", "answer", "choice"), "text": ("text",), "answer": ("answer",), "choice": ("choice", "answer")}


def load(data: Data, tokenizer: Any, seed: int, life: Life = ALL) -> Dataset:
    """Read a source, choose users, split each one's examples by time and encode them; of a life, those of its period, if one is named.

    The seed alone decides which of the users that have ``min_examples`` are chosen; the tokenizer has no part in it.
    ``max_examples`` then keeps a user's latest. For texts both count chunks of ``max_tokens``, the former by an
    estimate from characters (`split.count`). The rule of the splits is written at `split.split`.
    Raises `InputError` for whatever the data cannot give.
    """
    return every_period(data, tokenizer, seed, life)[life.period - 1] if life.period else every_period(data, tokenizer, seed, ALL)[0]


def every_period(data: Data, tokenizer: Any, seed: int, life: Life) -> list[Dataset]:
    """The data of each period of a life; of none, all data as one. Who has fewer than two examples in a period is not in it."""
    if life.period > life.periods:
        raise InputError(f"life.period is {life.period}, and the life has life.periods={life.periods}")
    source, task, read, users, unseen = _read(data, seed)
    labels = _labels(source, data, read) if task == "choice" else ()
    ids = label_ids(tokenizer, labels) if labels else ()
    found = without.units(_splits({u: read[u] for u in (*users, *unseen)}, data, tokenizer, task, labels, life), data, life)
    public = encode(source.public(data), tokenizer, task, labels, data.max_tokens) if source.public else []
    nobodys = tuple(Encoded(p.ids, p.start, p.label, i) for i, found in enumerate(public) for p in found)
    said = source.profiles() if source.profiles else {}
    profiles = {user: said[user] for user in (*users, *unseen) if user in said}
    whole = Dataset({}, {}, task, labels, ids, source.unit, nobodys, profiles=profiles)
    return [
        replace(
            whole,
            users={u: found[u][t] for u in users if found[u][t].train},
            unseen={u: found[u][t] for u in unseen if found[u][t].train},
            earlier={u: tuple(e for before in found[u][:t] for e in before.train) for u in users} if t else {},
            counts={u: tuple(len(s.train) for s in found[u][: t + 1]) for u in users} if life.periods else {},
        )
        for t in range(max(life.periods, 1))
    ]


def times(data: Data, seed: int) -> dict[str, list[float]]:
    """When each privacy unit was, that is its last example, of each user that takes part; in order.

    Needs no model, and does not look at ``data.max_examples``. Raises `InputError` for whatever the data cannot give.
    """
    _, _, read, users, _ = _read(data, seed)
    return {user: list({example.unit: example.time for example in split.in_order(read[user])}.values()) for user in users}


def _read(data: Data, seed: int) -> tuple[Source, str, dict[str, list[Example]], list[str], list[str]]:
    """A source, the task, all users' examples, who of them takes part, and who is never trained on."""
    if data.name not in SOURCES:
        raise unknown("data", data.name, SOURCES)
    source = SOURCES[data.name]
    task, read = _task(source, data), source.read(data)
    counts = {user: split.count(examples, task, data.max_tokens, data.max_chunks) for user, examples in read.items()}
    chosen, unseen = split.choose(counts, data, seed)
    read = without.users(read, data)  # nobody comes in the place of whoever is left out
    return source, task, read, [user for user in chosen if user in read], [user for user in unseen if user in read]


def _task(source: Source, data: Data) -> str:
    task = data.task or source.task
    if task not in TASKS[source.task]:
        got = f"got '{task}'" if task else "it is empty"
        raise InputError(f"data.task must be {' or '.join(TASKS[source.task])} for data.name '{data.name}', {got}")
    return task


def _labels(source: Source, data: Data, read: dict[str, list[Example]]) -> tuple[str, ...]:
    found = sorted({example.answer for examples in read.values() for example in examples})
    return data.labels or source.labels or tuple(found)


def _splits(chosen: dict[str, list[Example]], data: Data, tokenizer: Any, task: str, labels: tuple[str, ...],
            life: Life) -> dict[str, list[Splits]]:  # fmt: skip
    """Each user's splits, of every period in turn; of no life, of all that they have."""
    ordered = {user: split.in_order(examples) for user, examples in chosen.items()}
    examples = [example for found in ordered.values() for example in found]
    pieces = iter(encode(examples, tokenizer, task, labels, data.max_tokens))  # all users in one batch
    kept = {user: [split.spread(next(pieces), data.max_chunks) for _ in found] for user, found in ordered.items()}
    if not life.periods:
        return {user: [split.split(user, found, kept[user], data)] for user, found in ordered.items()}
    flat = {user: split.numbered(user, found, kept[user], data) for user, found in ordered.items()}
    span = periods.span((time for _, times in flat.values() for time in times), life)
    return {user: periods.splits(e, periods.of_units(t, _sizes(e), life, span), data, life.periods) for user, (e, t) in flat.items()}


def _sizes(encoded: Sequence[Encoded]) -> list[int]:
    """Examples of each privacy unit, in order."""
    return list(Counter(e.unit for e in encoded).values())

"""From a scenario's ``data`` to users with encoded splits."""

from typing import Any

from client.data import split
from client.data.encode import encode, label_ids
from client.data.sources import SOURCES
from client.data.types import Dataset, Encoded, Example, Source, Splits
from configs.errors import InputError, unknown
from configs.scenario import Data

TASKS = {"": ("text", "answer", "choice"), "text": ("text",), "answer": ("answer",), "choice": ("choice", "answer")}


def load(data: Data, tokenizer: Any, seed: int) -> Dataset:
    """Read a source, choose users, split each one's examples by time and encode them.

    The seed alone decides which of the users that have ``min_examples`` are chosen; the tokenizer has no part in it.
    ``max_examples`` then keeps a user's latest. For texts both count chunks of ``max_tokens``, the former by an
    estimate from characters (`split.count`). The rule of the splits is written at `split.split`.
    Raises `InputError` for whatever the data cannot give.
    """
    if data.name not in SOURCES:
        raise unknown("data", data.name, SOURCES)
    source = SOURCES[data.name]
    task = _task(source, data)
    read = source.read(data)
    labels = _labels(source, data, read) if task == "choice" else ()
    ids = label_ids(tokenizer, labels) if labels else ()
    counts = {user: split.count(examples, task, data.max_tokens, data.max_chunks) for user, examples in read.items()}
    users, unseen = split.choose(counts, data, seed)
    splits = _splits({user: read[user] for user in (*users, *unseen)}, data, tokenizer, task, labels)
    public = encode(source.public(data), tokenizer, task, labels, data.max_tokens) if source.public else []
    nobodys = tuple(Encoded(p.ids, p.start, p.label, i) for i, found in enumerate(public) for p in found)
    return Dataset({u: splits[u] for u in users}, {u: splits[u] for u in unseen}, task, labels, ids, source.unit, nobodys)


def _task(source: Source, data: Data) -> str:
    task = data.task or source.task
    if task not in TASKS[source.task]:
        got = f"got '{task}'" if task else "it is empty"
        raise InputError(f"data.task must be {' or '.join(TASKS[source.task])} for data.name '{data.name}', {got}")
    return task


def _labels(source: Source, data: Data, read: dict[str, list[Example]]) -> tuple[str, ...]:
    found = sorted({example.answer for examples in read.values() for example in examples})
    return data.labels or source.labels or tuple(found)


def _splits(chosen: dict[str, list[Example]], data: Data, tokenizer: Any, task: str, labels: tuple[str, ...]) -> dict[str, Splits]:
    ordered = {user: split.in_order(examples) for user, examples in chosen.items()}
    examples = [example for found in ordered.values() for example in found]
    pieces = iter(encode(examples, tokenizer, task, labels, data.max_tokens))  # all users in one batch
    kept = {user: [split.spread(next(pieces), data.max_chunks) for _ in found] for user, found in ordered.items()}
    return {user: split.split(user, found, kept[user], data) for user, found in ordered.items()}

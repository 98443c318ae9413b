"""Which users take part, and which of a user's examples train, validate and test."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

from client.data.encode import Piece
from client.data.types import Encoded, Example, Splits
from configs.errors import InputError
from configs.scenario import Data

T = TypeVar("T")
CHARACTERS = 4  # per token, about what English takes; counts chunks before any tokenizer is there


def choose(counts: Mapping[str, int], data: Data, seed: int) -> tuple[list[str], list[str]]:
    """Return the sorted names of the users that take part and of those that are never trained on.

    ``counts`` is each user's number of examples. Those who have enough stand in an order drawn by the seed; the unseen
    come first in it, so that asking for more users changes neither them nor the users chosen so far.
    """
    qualified = [name for name, count in counts.items() if count >= data.min_examples]
    asked = max(data.users, 1) + data.unseen_users
    if asked > len(qualified):
        raise InputError(
            f"data.users={data.users} and data.unseen_users={data.unseen_users} need {asked} users with "
            f"data.min_examples={data.min_examples}, but only {len(qualified)} of {len(counts)} in '{data.name}' have "
            "so many: ask for fewer or lower data.min_examples"
        )
    order = sorted(qualified, key=lambda name: hashlib.blake2b(f"{seed}/users/{name}".encode()).digest())
    unseen, rest = order[: data.unseen_users], order[data.unseen_users :]
    return sorted(rest[: data.users] if data.users else rest), sorted(unseen)


def count(examples: Sequence[Example], task: str, max_tokens: int, max_chunks: int = 0) -> int:
    """Count a user's examples as ``min_examples`` means them, without a tokenizer.

    Whether a user qualifies must not depend on the model, so the chunks of a text are estimated from its characters.
    """
    if task != "text":
        return len(examples)
    chunks = (math.ceil(len(example.answer) / (CHARACTERS * max_tokens)) for example in examples)
    return sum(min(found, max_chunks or found) for found in chunks)


def spread(pieces: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of a text's pieces, evenly spread over it and in order; 0: all."""
    return [pieces[at * len(pieces) // most] for at in range(most)] if 0 < most < len(pieces) else pieces


def in_order(examples: Sequence[Example]) -> list[Example]:
    """Sort examples by time, those of one privacy unit together at the time of the unit's last one."""
    units: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda example: example.time):
        units[example.unit] = [*units.pop(example.unit, []), example]  # popped and set again: moves to the end
    return [example for unit in units.values() for example in unit]


def split(user: str, examples: Sequence[Example], pieces: Sequence[Sequence[Piece]], data: Data) -> Splits:
    """Split one user's examples, given by `in_order`, and the pieces that each was encoded to.

    The rule, for all tasks:

    - the latest ``data.max_examples`` pieces are kept (0: all), which may cut off the beginning of a document;
    - the splits are cut between privacy units, where the shares come closest to ``data.train`` and ``data.validation``,
      so that pieces of one document never lie on two sides;
    - a user with only one unit is cut between its pieces, in order;
    - train and test are never empty; validation is empty only if no share is asked for or there are just two units.
    """
    return part(numbered(user, examples, pieces, data)[0], data)


def numbered(user: str, examples: Sequence[Example], pieces: Sequence[Sequence[Piece]],
             data: Data) -> tuple[tuple[Encoded, ...], list[float]]:  # fmt: skip
    """A user's latest examples, their privacy units numbered, and the time of each unit: that of its last example."""
    flat = [(piece, e.unit) for e, found in zip(examples, pieces, strict=True) for piece in found]
    flat = flat[-data.max_examples :]  # -0 keeps all
    if len(flat) < 2:
        raise InputError(
            f"user '{user}' has {len(flat)} example(s) of data.max_tokens={data.max_tokens} and needs 2, one to "
            "train and one to test: raise data.min_examples or data.max_examples, or lower data.max_tokens"
        )
    number = {unit: index for index, unit in enumerate(dict.fromkeys(unit for _, unit in flat))}
    time = {e.unit: e.time for e in sorted(examples, key=lambda e: e.time)}
    return tuple(Encoded(*piece, unit=number[unit]) for piece, unit in flat), [time[unit] for unit in number]


def part(encoded: Sequence[Encoded], data: Data) -> Splits:
    """Cut examples, two or more, into train, validation and test."""
    sizes = list(Counter(example.unit for example in encoded).values())
    first, second = cuts(sizes if len(sizes) > 1 else [1] * len(encoded), data.train, data.validation)
    return Splits(tuple(encoded[:first]), tuple(encoded[first:second]), tuple(encoded[second:]))


def cuts(sizes: Sequence[int], train: float, validation: float) -> tuple[int, int]:
    """Return the ends of train and validation, in examples, for two or more units of these sizes.

    >>> cuts([1] * 10, 0.7, 0.1)
    (7, 8)
    >>> cuts([6, 6, 1], 0.7, 0.1)
    (6, 12)
    """
    ends, total = list(accumulate(sizes)), sum(sizes)
    between = ends[:-1]
    validated = validation > 0 and len(between) > 1
    first = min(between[:-1] if validated else between, key=lambda end: abs(end - train * total))
    if not validated:
        return first, first
    later = [end for end in between if end > first]
    return first, min(later, key=lambda end: abs(end - (train + validation) * total))

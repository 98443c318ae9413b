"""Who, and which of a user's privacy units, are left out of the data since they were forgotten: `Data.without`.

A mark stands where a name would say once more who was there. It hides nothing from somebody who knows the name and looks for it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from client.data.types import Encoded, Splits
from configs.errors import InputError
from configs.life import Life
from configs.scenario import Data

T = TypeVar("T")


def mark(user: str, unit: int | None = None) -> str:
    """What stands for a user in `Data.without`, or for one of the user's privacy units.

    >>> mark("ann"), mark("ann", 3)
    ('8d3adf6abf23f3a5', '8d3adf6abf23f3a5:3')
    """
    found = hashlib.blake2b(user.encode(), digest_size=8).hexdigest()
    return found if unit is None else f"{found}:{unit}"


def users(read: Mapping[str, T], data: Data) -> dict[str, T]:
    """All users but those that are left out."""
    return {user: found for user, found in read.items() if mark(user) not in data.without}


def units(found: Mapping[str, list[Splits]], data: Data, life: Life) -> dict[str, list[Splits]]:
    """Users' splits without the units that are left out. Every other example stays in the split that it was in.

    Raises `InputError` where nothing is left to train on, in data that are no life.
    """
    kept = {user: [_without(user, splits, data) for splits in periods] for user, periods in found.items()} if data.without else found
    for user, periods in kept.items():
        if not life.periods and not periods[0].train:
            raise InputError(f"data.without leaves user '{user}' no example to train on; leave out the user")
    return dict(kept)


def _without(user: str, splits: Splits, data: Data) -> Splits:
    def left(examples: tuple[Encoded, ...]) -> tuple[Encoded, ...]:
        return tuple(e for e in examples if mark(user, e.unit) not in data.without)

    return replace(splits, train=left(splits.train), validation=left(splits.validation), test=left(splits.test))

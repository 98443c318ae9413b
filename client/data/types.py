"""What data is on its way to the engine: examples as text, as tokens, and users with their splits."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from configs.scenario import Data


@dataclass(frozen=True)
class Example:
    """One example as text, before the tokenizer."""

    prompt: str  # "" for next-token tasks
    answer: str  # the text whose tokens carry the loss; for a choice: the right label
    time: float  # orders a user's examples; ties keep the order of the file
    unit: str  # the privacy unit it belongs to: one rating, one document, ...


@dataclass(frozen=True)
class Encoded:
    """One example as the engine takes it. Examples with equal contents may share one ``ids`` tensor."""

    ids: torch.Tensor  # int64 [T]
    start: int  # the loss is on ids[start:], predicted from positions start-1 .. T-2; a choice: T, predicted after it
    label: int  # a choice: index of the right label; else -1
    unit: int  # index of the privacy unit within the user: 0, 1, ... in order of time

    @cached_property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @cached_property
    def key(self) -> bytes:
        """What activations below the adapters depend on: the tokens, and where predicting begins."""
        return self.ids.numpy().tobytes() + self.start.to_bytes(4, "little")


@dataclass(frozen=True)
class Splits:
    """One user's examples, the earliest in ``train`` and the latest in ``test``."""

    train: tuple[Encoded, ...]
    validation: tuple[Encoded, ...]
    test: tuple[Encoded, ...]


@dataclass(frozen=True)
class Dataset:
    """Users with their splits, and how their examples are to be read."""

    users: dict[str, Splits]  # take part in training; sorted by name
    unseen: dict[str, Splits]  # never trained on; sorted by name
    task: str  # text | answer | choice
    labels: tuple[str, ...]  # a choice: the texts of the labels; else empty
    label_ids: tuple[int, ...]  # a choice: the token that stands for each label, all different
    unit: str  # the privacy unit in words
    public: tuple[Encoded, ...] = ()  # texts that belong to nobody; factors of a core may be fitted to them
    earlier: dict[str, tuple[Encoded, ...]] = field(default_factory=dict)  # of a period: what users trained on in those before it
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of a period: how many examples, in each up to it
    profiles: dict[str, str] = field(default_factory=dict)  # what users say about themselves, where the source has it


class Source(NamedTuple):
    """Where users come from: one file of this package, one line in `sources.SOURCES`."""

    read: Callable[[Data], dict[str, list[Example]]]  # user -> examples, in any order of time
    task: str  # what it is made for; "": the scenario must say
    labels: tuple[str, ...]  # a choice: the labels when the scenario names none; empty: the sorted answers in the data
    unit: str  # the privacy unit in words
    about: str  # one line: what it is, its licence
    public: Callable[[Data], list[Example]] | None = None  # texts that belong to no user, such as a catalogue
    profiles: Callable[[], dict[str, str]] | None = None  # user -> what they say about themselves, and publish

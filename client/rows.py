"""A pass: rows of token ids, padded to the right, sorted by user.

Padding on the right needs no mask under causal attention: a real token never sees a later one. So a row's result depends neither on
the other rows nor on how far it was padded.

Shape suffixes: N rows, T tokens of the longest row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.data.types import Encoded


@dataclass(frozen=True)
class Rows:
    """N examples as one padded block."""

    ids_NT: Tensor  # int64
    length_N: Tensor  # int64, real tokens of each row
    start_N: Tensor  # int64, the first predicted token; equal to the length for a choice
    label_N: Tensor  # int64, index of the right label; -1 where the tokens themselves are predicted
    keys: tuple[bytes, ...]  # names each row's tokens and start in the activation cache

    def predicting(self) -> Tensor:
        """Positions whose hidden state predicts something, bool [N, T]: start - 1 up to the last but one, or the last."""
        position = torch.arange(self.ids_NT.shape[1], device=self.ids_NT.device)
        last = self.length_N - (self.label_N < 0).long()
        return (position >= self.start_N[:, None] - 1) & (position < last[:, None])

    def queries(self, count: int) -> Tensor:
        """``count`` positions of each row from start - 1 on, int64 [N, count]; past the end the last one stands again."""
        query_NQ = self.start_N[:, None] - 1 + torch.arange(count, device=self.ids_NT.device)
        return query_NQ.clamp(max=self.ids_NT.shape[1] - 1)

    def wanted(self, query_NQ: Tensor) -> Tensor:
        """Which of `queries` predict something, bool [N, count]."""
        here_NQ = query_NQ - self.start_N[:, None] + 1 == torch.arange(query_NQ.shape[1], device=query_NQ.device)
        return self.predicting().gather(1, query_NQ) & here_NQ

    def to(self, device: torch.device) -> "Rows":
        """The same rows on another device."""
        ids, length, start, label = (t.to(device) for t in (self.ids_NT, self.length_N, self.start_N, self.label_N))
        return Rows(ids, length, start, label, self.keys)


def pad(examples: Sequence[Encoded]) -> Rows:
    """Pad examples to the longest of them."""
    ids = torch.nn.utils.rnn.pad_sequence([e.ids for e in examples], batch_first=True)
    numbers = torch.tensor([(e.length, e.start, e.label) for e in examples])
    keys = tuple(e.key for e in examples)
    return Rows(ids, numbers[:, 0], numbers[:, 1], numbers[:, 2], keys)

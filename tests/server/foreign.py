"""Strategies that somebody else might have written for Flower, named in a scenario by their import path."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg


class Remembers(FedAvg):
    """Keeps one of everything that can be kept, from its birth on, and lets all of it show in the result."""

    def __init__(self, pace: float = 0.5, every: int = 1, **rest: Any) -> None:
        super().__init__(**rest)
        self.pace, self.every = pace, every
        self.round, self.best = 0, 1.0
        self.matrix = np.ones(2)
        self.sums = {"a": np.zeros(1), "b": np.ones(1)}
        self.past = [np.zeros(1)]
        self.late: dict[str, np.ndarray] | None = None

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvg, moved by what was kept."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.round += 1
        self.best *= self.pace
        self.matrix = self.matrix * 1.5
        self.sums["a"] = self.sums["a"] + self.round
        self.past.append(np.full(1, self.best))
        self.late = {"x": np.full(1, 0.1 * self.round)} if self.late is None else {"x": self.late["x"] * 2}
        kept = self.round + self.best + self.matrix.sum() + self.sums["a"][0] + self.sums["b"][0]
        kept += sum(float(p[0]) for p in self.past) + self.late["x"][0] + server_round
        return ArrayRecord({n: v + 0.01 * float(kept) for n, v in arrays.to_torch_state_dict().items()}), metrics


class Hoards(FedAvg):
    """Keeps a list of floats, which no checkpoint of ours would hold."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.losses: list[float] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvg."""
        self.losses.append(float(server_round))
        return super().aggregate_train(server_round, replies)

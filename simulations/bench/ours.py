"""Our side: the engine as a node uses it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from client.base import Base
from client.dpsgd import Guard
from client.tower import Tower
from client.train import Learner, Trainer
from configs.scenario import Local
from simulations.bench.measure import Result
from simulations.bench.world import Size, encoded, layouts
from strategies.tree import State


class Fused:
    """All users of a size in one pass. `close` gives the model back."""

    def __init__(self, model: torch.nn.Module, size: Size) -> None:
        base = Base(model, None, "random")
        self.layouts = layouts(size, base)
        self.tower = Tower(base, self.layouts, size.engine)
        self.trainer = Trainer(self.tower, self.layouts, size.engine)

    def close(self) -> None:
        """Take the adapters off the model."""
        self.tower.close()

    def visit(self, starts: Sequence[State], ids_UNT: Tensor, local: Local, guard: Guard | None = None, noise: float = 0.0) -> Result:
        """Train every user from their own start, with a ``guard`` by DP-SGD; adapters go in and come out by name."""
        learners = [
            Learner(s, encoded(ids), (), (0, 1, str(k), "shared"), noise)
            for k, (s, ids) in enumerate(zip(starts, ids_UNT, strict=True))
        ]
        states, work = self.trainer.train(learners, lambda _name: True, local, guard)
        return Result(states, work.loss / work.examples)

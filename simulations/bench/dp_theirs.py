"""Their side of DP-SGD: Opacus on stock PEFT, one user after the other, by hooks or by ghost clipping.

Hooks keep every example's gradient; ghost clipping (Li et al., arXiv 2110.05679, section 4) works out their norms alone and passes back
a second time.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from configs.scenario import Local
from simulations.bench.measure import Result
from simulations.bench.theirs import trained, wrapped
from simulations.bench.world import Size
from strategies.tree import State


class Opacus:
    """A model under PEFT and Opacus, on the device that it was on; each user gets a new optimizer."""

    def __init__(self, model: torch.nn.Module, size: Size, clip: float, ghost: bool) -> None:
        stock, self.clip, self.ghost = wrapped(model, size), clip, ghost
        self.named = trained(stock, size.blocks)
        self.parameters = list(self.named.values())
        bound: Any = clip  # annotated as an int, and used as any number
        self.model: Any = GradSampleModuleFastGradientClipping(stock, max_grad_norm=bound) if ghost else GradSampleModule(stock)
        self.kind = DPOptimizerFastGradientClipping if ghost else DPOptimizer

    def visit(self, starts: Sequence[State], ids_UNT: Tensor, local: Local, noise: float) -> Result:
        """Train every user from their own start, ``local.epochs`` steps on their one batch."""
        states, losses = [], []
        for start, ids in zip(starts, ids_UNT, strict=True):
            self._load(start)
            optimizer = self._optimizer(local, noise, len(ids))
            losses += [self._step(optimizer, ids.to(self.parameters[0].device)) for _ in range(local.epochs)]
            states.append({name: value.detach().clone() for name, value in self.named.items()})
        return Result(states, sum(losses) / len(losses))

    @torch.no_grad()
    def _load(self, start: State) -> None:
        torch._foreach_copy_(self.parameters, [start[name] for name in self.named])

    def _optimizer(self, local: Local, noise: float, examples: int) -> DPOptimizer:
        adam = {"lr": local.lr, "weight_decay": 0.0, "fused": True}
        plain = (
            torch.optim.SGD(self.parameters, lr=local.lr) if local.optimizer == "sgd" else torch.optim.AdamW(self.parameters, **adam)
        )
        return self.kind(plain, noise_multiplier=noise, max_grad_norm=self.clip, expected_batch_size=examples)

    def _step(self, optimizer: DPOptimizer, ids_NT: Tensor) -> float:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)  # of torch, about hooks on a first layer
            logits_NTV = self.model(input_ids=ids_NT).logits[:, :-1]
            losses_N = F.cross_entropy(logits_NTV.transpose(1, 2), ids_NT[:, 1:], reduction="none").mean(1)
            loss: Any = DPTensorFastGradientClipping(self.model, optimizer, losses_N) if self.ghost else losses_N.mean()  # type: ignore[arg-type]
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(losses_N.detach().mean())

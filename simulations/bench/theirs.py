"""Their side: plain PEFT, one user after the other, and one adapter on everybody's data."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from simulations.bench.measure import Result
from simulations.bench.world import ALPHA, LR, RANK, Size
from strategies.tree import State


def wrapped(model: torch.nn.Module, size: Size) -> PeftModel:
    """A copy of the model with the same LoRA under PEFT, all adapters active and trained."""
    config = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules="all-linear", lora_dropout=0.0)
    found = get_peft_model(copy.deepcopy(model), config, adapter_name=size.blocks[0])  # type: ignore[arg-type]
    assert isinstance(found, PeftModel)
    for block in size.blocks[1:]:
        found.add_adapter(block, config)
    tuner: Any = found.base_model
    tuner.set_adapter(list(size.blocks))
    return found.train()


class Usual:
    """The usual client: load the user's adapters, a new AdamW, one step, read the adapters back."""

    def __init__(self, model: torch.nn.Module, size: Size) -> None:
        self.model, self.blocks = wrapped(model, size), size.blocks

    def visit(self, starts: Sequence[State], ids_UNT: Tensor) -> Result:
        """Visit every user once."""
        states, losses = [], []
        for start, ids in zip(starts, ids_UNT, strict=True):
            self._load(start)
            optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
            loss = self.model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            states.append(self._read())
        return Result(states, sum(losses) / len(losses))

    def _load(self, start: State) -> None:
        for block in self.blocks:
            mine = {k.removeprefix(f"{block}/"): v for k, v in start.items() if k.startswith(f"{block}/")}
            set_peft_model_state_dict(self.model, mine, adapter_name=block)

    def _read(self) -> State:
        found: State = {}
        for block in self.blocks:
            state = get_peft_model_state_dict(self.model, adapter_name=block, save_embedding_layers=False)
            found |= {f"{block}/{name}": value.clone() for name, value in state.items()}
        return found


class Lean:
    """The leanest loop over users that keeps PEFT: parameters copied in place, one fused AdamW whose moments are reset."""

    def __init__(self, model: torch.nn.Module, size: Size) -> None:
        self.model = wrapped(model, size)
        self.named = trained(self.model, size.blocks)
        self.parameters = list(self.named.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=0.0, fused=True)

    def visit(self, starts: Sequence[State], ids_UNT: Tensor) -> Result:
        """Visit every user once."""
        states, losses = [], []
        for start, ids in zip(starts, ids_UNT, strict=True):
            self._reset(start)
            loss = self.model(input_ids=ids, labels=ids).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
            states.append({name: value.detach().clone() for name, value in self.named.items()})
        return Result(states, sum(losses) / len(losses))

    @torch.no_grad()
    def _reset(self, start: State) -> None:
        torch._foreach_copy_(self.parameters, [start[name] for name in self.named])
        if self.optimizer.state:
            torch._foreach_zero_([v for p in self.parameters for v in self.optimizer.state[p].values()])


class Pooled:
    """One adapter on everybody's data: all users' rows in one pass, so many steps, one optimizer."""

    def __init__(self, model: torch.nn.Module, size: Size) -> None:
        self.model = wrapped(model, size)
        self.named = trained(self.model, size.blocks)

    @torch.no_grad()
    def load(self, start: State) -> None:
        """Start from these adapters."""
        torch._foreach_copy_(list(self.named.values()), [start[name] for name in self.named])

    def train(self, ids_UNT: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> Result:
        """Step over all rows at once; the loss is the mean over the steps."""
        ids, losses = ids_UNT.flatten(0, 1), []
        for _ in range(steps):
            loss = self.model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return Result([{name: value.detach().clone() for name, value in self.named.items()}], sum(losses) / steps)


def trained(model: PeftModel, blocks: Sequence[str]) -> State:
    """The trained parameters under our names, "block/PEFT name"."""
    found: State = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            block = next(b for b in blocks if f".{b}." in name)
            found[f"{block}/{name.replace(f'.{block}.', '.')}"] = value
    return found

"""Users whose devices carry fewer ranks of the shared LoRA than others: they train the first so many, and the rest is zero for them.

Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024, arXiv 2401.06432, section 3.
Rows of A and columns of B beyond a user's rank have no gradient as both are zero; a mask keeps noise and pulls out of them too.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from configs.scenario import Scenario
from strategies.tree import State, generator


def rank_of(scenario: Scenario, user: str, most: int = 0) -> int:
    """A user's rank, drawn by the seed from `shared_ranks`; ``most``: what the node allows, 0: any."""
    among = scenario.shared_ranks or (scenario.shared.rank,)
    drawn = among[int(torch.randint(len(among), (1,), generator=generator(scenario.seed, user, "rank")))]
    return min(drawn, most) if most else drawn


def masks(state: State, blocks: tuple[str, ...], rank: int) -> State:
    """1 where a user of that rank has a number and 0 elsewhere, for the factors of these adapters: "block/name" -> like the tensor."""
    factors = {key: value for key, value in state.items() if key.partition("/")[0] in blocks and ".lora_" in key}
    return {key: _first(value, key, rank) for key, value in factors.items() if axis(key) is not None}


def masked(state: State, mask: Mapping[str, Tensor]) -> State:
    """The state as a user sees it."""
    return {key: value * mask[key] if key in mask else value for key, value in state.items()}


def narrowed(update: State, rank: int) -> State:
    """The first ranks of each factor: what is sent where an aggregator takes them."""
    found = {name: axis(name) for name in update}
    return {n: v if (at := found[n]) is None else v.narrow(at, 0, min(rank, v.shape[at])).clone() for n, v in update.items()}


def axis(name: str) -> int | None:
    """Along which axis a tensor's ranks lie."""
    return 0 if ".lora_A." in name else 1 if ".lora_B." in name else None


def _first(value: Tensor, name: str, rank: int) -> Tensor:
    mask, at = torch.zeros_like(value), axis(name)
    assert at is not None
    mask.narrow(at, 0, min(rank, value.shape[at])).fill_(1)
    return mask

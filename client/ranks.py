"""Users whose devices carry fewer ranks of the shared LoRA than others: they train the first so many, and the rest is zero for them.

Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024, arXiv 2401.06432, section 3.
Rows of A and columns of B beyond a user's rank have no gradient as both are zero; a mask keeps noise and pulls out of them too.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from configs.scenario import Scenario
from strategies.lora import rank_axis
from strategies.tree import State, generator


def rank_of(scenario: Scenario, user: str, most: int = 0) -> int:
    """A user's rank, drawn by the seed from `shared_ranks`; ``most``: what the node allows, 0: any."""
    rank, among = scenario.shared.rank, scenario.shared_ranks
    if among:
        rank = among[int(torch.randint(len(among), (1,), generator=generator(scenario.seed, user, "rank")))]
    return min(rank, most) if most else rank


def masks(state: State, blocks: tuple[str, ...], rank: int) -> State:
    """1 where a user of that rank has a number and 0 elsewhere, for the factors of these adapters: "block/name" -> like the tensor."""
    factors = {key: at for key in state if key.partition("/")[0] in blocks and (at := rank_axis(key)) is not None}
    return {key: _first(state[key], at, rank) for key, at in factors.items()}


def masked(state: State, mask: Mapping[str, Tensor]) -> State:
    """The state as a user sees it."""
    return {key: value * mask[key] if key in mask else value for key, value in state.items()}


def narrowed(update: State, rank: int) -> State:
    """The first ranks of each factor: what is sent where an aggregator takes them."""
    return {n: v if (at := rank_axis(n)) is None else v.narrow(at, 0, min(rank, v.shape[at])).clone() for n, v in update.items()}


def _first(value: Tensor, at: int, rank: int) -> Tensor:
    mask = torch.zeros_like(value)
    mask.narrow(at, 0, min(rank, value.shape[at])).fill_(1)
    return mask

"""LoRA-A2: the factors take turns as in RoLoRA, and a user sends those ranks alone that their training has changed the most.

Koo et al., "Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous Clients", arXiv 2410.22815, section 4.

    odd:  score_i = ||dB_k[:, i]|| ||A[i, :]||,    even:  score_i = ||B[:, i]|| ||dA_k[i, :]||

the Frobenius norm of what rank i adds. The best share ``keep`` of all ranks of all modules together is sent, which each user chooses
anew. Deviation: the other ranks are zeros in the message, so that it is a sum like any other and its names and shapes tell nothing; no
bytes are saved. Which ranks are zero follows from a user's update: whatever noise covers that covers it.
"""

import math

import torch

from strategies.aggregators.fedit import mean_of_updates
from strategies.aggregators.rolora import turn
from strategies.base import Aggregator
from strategies.lora import pairs
from strategies.options import within
from strategies.tree import State


def lora_a2(keep: float = 0.5) -> Aggregator:
    """Build LoRA-A2. Linear, and exact for what users send; ``keep`` 1 is RoLoRA."""
    within("keep", keep, 1e-6, 1)
    return Aggregator(lambda _: {}, mean_of_updates, turn, linear=True, paper="arXiv 2410.22815", exact=True, paired=True,
                      at_home=lambda _, received, update: best(received, update, keep))  # fmt: skip


def best(received: State, update: State, keep: float) -> State:
    """The update with zeros in all ranks but the best; what is none of a pair of received factors stays."""
    moved = {name: other for pair in pairs(received) for name, other in (pair, pair[::-1]) if name in update}
    if not moved:
        return update
    scores = {name: update[name].norm(dim=_across(name)) * received[other].norm(dim=_across(other)) for name, other in moved.items()}
    every_R = torch.cat([*scores.values()])
    least = every_R.sort(descending=True).values[math.ceil(keep * len(every_R) - 1e-9) - 1]
    kept = {name: (score_R >= least).unsqueeze(_across(name)) for name, score_R in scores.items()}
    return {name: torch.where(kept[name], value, 0.0) if name in kept else value for name, value in update.items()}


def _across(name: str) -> int:
    """The axis of a factor along which one of its ranks lies: B is [O, R], A is [R, I]."""
    return 0 if ".lora_B." in name else 1

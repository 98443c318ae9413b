"""FedRot-LoRA: each user turns their ranks towards the received adapter before anything is averaged. The product stays.

Zhang et al., "FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA", arXiv 2602.23638, section 4.

    U S V = A_k A^T,    R = U V,    R <- polar((1 - strength) I + strength R),    A_k <- R^T A_k,    B_k <- B_k R

R is the rotation that brings A_k nearest to the received A; in even rounds B_k to B. It is made at home, of what the user was sent and
has trained, so that the server sees a sum only. The factors' norms stay. As in the paper's code the first round has no rotation (B is
zero), and R has determinant 1.
"""

import torch
from torch import Tensor

from strategies.aggregators.fedit import mean_of_updates
from strategies.base import Aggregator
from strategies.lora import pairs
from strategies.options import within
from strategies.tree import State


def fedrot(strength: float = 0.5) -> Aggregator:
    """Build FedRot-LoRA. Linear; ``strength`` 0 is FedIT, 1 the whole rotation."""
    within("strength", strength, 0, 1)

    def at_home(number: int, received: State, update: State) -> State:
        return rotated(received, update, strength, by_a=number % 2 == 1) if number > 1 else update

    return Aggregator(lambda _: {}, mean_of_updates, lambda _: ("lora_A", "lora_B"), linear=True, paper="arXiv 2602.23638",
                      paired=True, at_home=at_home)  # fmt: skip


def rotated(received: State, update: State, strength: float, by_a: bool) -> State:
    """The update after which every product is the same and its ranks lie along those of the received A, or B."""
    found = dict(update)
    for b, a in pairs(update):
        own_b, own_a = ((received[name] + update[name]).double() for name in (b, a))
        matched_RR = own_a @ received[a].double().T if by_a else own_b.T @ received[b].double()
        turn_RR = softened(rotation(matched_RR), strength)
        found[b] = (own_b @ turn_RR).to(update[b].dtype) - received[b]
        found[a] = (turn_RR.T @ own_a).to(update[a].dtype) - received[a]
    return found


def rotation(matched_RR: Tensor) -> Tensor:
    """The rotation R with the largest tr(R^T M): U V of M = U S V, its last direction turned over where that has determinant -1."""
    u, _, v = torch.linalg.svd(matched_RR)
    last = torch.ones(len(u)).to(u)
    last[-1] = torch.linalg.det(u @ v).sign()
    return (u * last) @ v


def softened(turn_RR: Tensor, strength: float) -> Tensor:
    """The rotation nearest to the mean of none and this one."""
    return rotation((1 - strength) * torch.eye(len(turn_RR)).to(turn_RR) + strength * turn_RR)

"""What a node does as a user's next period begins, and which earlier examples train along.

A period begins for a user when they first train in it, from what they had then. Everything is worked out from that and from public
numbers, so a round that is repeated begins the period in the same way.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

import torch

from client.data.types import Encoded
from client.drifting import judged, sits_out
from client.objective import row_losses
from client.store.manifest import PRIVATE
from client.train import together
from strategies.base import Phase
from strategies.keeping.contract import MEMORY, PERIOD, SAT_OUT, SEEN, A, B, Lesson, modules, remembered
from strategies.keeping.ewc import COLUMNS, CORE, ROWS
from strategies.keeping.replay import replayed
from strategies.tree import State, partition

if typing.TYPE_CHECKING:
    from client.node import Node

DELTA = "lora_delta.weight"
CHUNK = 8  # examples whose slopes of whole weights are in memory at one time


def begun(node: Node, user: str, state: State, round_: int) -> State:
    """What a user has, after the period of the node's scenario has begun for them, or they have been told to sit it out."""
    if PERIOD not in state or int(state[PERIOD]) >= node.scenario.life.period:
        return state
    if SAT_OUT in state and sits_out(node, state := judged(node, user, state, round_)):
        return state
    earlier = node.dataset.earlier.get(user, ())
    if int(state[PERIOD]):
        state = node.keeping.begin(state, _lesson(node, user, state, earlier))
    return state | {PERIOD: torch.full_like(state[PERIOD], node.scenario.life.period), SEEN: torch.full_like(state[SEEN], len(earlier))}


def train_of(node: Node, phase: Phase, user: str, state: State) -> Sequence[Encoded]:
    """The examples that a phase trains on: the period's own, and before them those of earlier periods that are replayed.

    None in what is private of who sits the period out.
    """
    earlier, train = node.dataset.earlier.get(user, ()), node.dataset.users[user].train
    if "private" not in phase.moves:
        return train
    if sits_out(node, state):
        return ()
    return (*(earlier[at] for at in replayed(state, len(earlier))), *train)


def along(node: Node, user: str, state: State) -> int:
    """How many earlier examples train along, in every phase that trains what is private."""
    return len(replayed(state, len(node.dataset.earlier.get(user, ()))))


def _lesson(node: Node, user: str, state: State, earlier: Sequence[Encoded]) -> Lesson:
    own = {name: value for name, value in node.start.items() if name.startswith("private/")}
    seen = int(state[SEEN])
    key = (node.scenario.seed, user, "keep")
    return Lesson(own, seen, len(earlier), node.scenario.life.period, key, lambda: importance(node, state, earlier[seen:]))


def importance(node: Node, state: State, examples: Sequence[Encoded]) -> State:
    """Mean squared slopes of an example's loss by the change of each weight: their sums over rows and over columns.

    Of a private core the mean squared slopes themselves. Nothing of it is noised.
    """
    blocks = node.trainer.blocks(together([state]), node.split.scheme.final)
    found: State = {}
    for first in range(0, len(examples), CHUNK):
        some = examples[first : first + CHUNK]
        leaves = _leaves(state, len(some))
        named = {name.removeprefix("private/"): value for name, value in leaves.items()}
        applied = [(x, {**own, **named} if x.block == "private" else own) for x, own in blocks]
        losses = row_losses(node.base, node.tower(some, applied), len(some), node.dataset.label_ids)
        for name, slope in zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True):
            for kept, value in _sums(name, slope.square().sum(0) / len(examples)).items():
                found[kept] = found.get(kept, torch.zeros_like(value)) + value
    return found


def _leaves(state: State, users: int) -> State:
    """What slopes are taken of, one for each example: a change of each LoRA's weight, or a core."""
    shapes = {name: (len(state[name + B]), state[name + A].shape[1]) for name in modules(state)}
    device = next(iter(state.values())).device
    found = {name + DELTA: torch.zeros(users, *shape, device=device) for name, shape in shapes.items()}
    cores = {n: v.expand(users, *v.shape).clone() for n, v in state.items() if n.startswith("private/") and n.endswith(CORE)}
    return {name: value.requires_grad_() for name, value in {**found, **cores}.items()}


def _sums(name: str, square: torch.Tensor) -> State:
    if name.endswith(CORE):
        return {remembered(name, ROWS): square}
    module = name.removesuffix(DELTA)
    return {remembered(module, ROWS): square.sum(1), remembered(module, COLUMNS): square.sum(0)}


def filed(state: State) -> dict[str, State]:
    """A user's private state by the kinds in which the store keeps it."""
    memory, own = partition(state, lambda name: name.startswith(f"{MEMORY}/"))
    return {PRIVATE: own} | ({MEMORY: memory} if memory else {})

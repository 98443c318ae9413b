"""What a way to keep is: a few pure functions on what one user has, between periods and in training.

A state is "block/name" -> tensor. What is remembered is in it as "memory/name", with shapes that never change, so that users train side
by side. Names of LoRA factors are PEFT's: A [r, I], B [O, r], and the change of a weight is B A (the scale alpha / r is left out).
In a view and in a penalty tensors have axes in front: [K, ...] for users, [K, u, ...] for their privacy units.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.base import plainly
from strategies.tree import State

MEMORY = "memory"  # the block, and the kind of file in a store
PERIOD, SEEN = f"{MEMORY}/period", f"{MEMORY}/seen"  # [1]: the last period that was begun, and the training examples of those before it
SAT_OUT = f"{MEMORY}/sat_out"  # [1]: the last period in which what is private did not train, as the data had not changed
NOTES = f"{MEMORY}/drift"  # [M]: what a detector of changes remembers
A, B = "lora_A.weight", "lora_B.weight"


class Lesson(NamedTuple):
    """What a node knows of a user whose next period begins."""

    start: State  # the private adapter as it is made, "private/name"
    seen: int  # training examples of earlier periods that were known when the last one began
    total: int  # and those that are known now; each has its place in time as a number
    period: int  # which period begins
    key: tuple[object, ...]  # of randomness
    importance: Callable[[], State]  # mean squared slope of the loss on examples seen .. total, without noise: see `ewc`


def nothing(_start: State, _periods: int) -> State:
    """No memory."""
    return {}


def unchanged(state: State, _lesson: Lesson) -> State:
    """A period begins with what the last one has left."""
    return state


class Keeping(NamedTuple):
    """What becomes of a private adapter from one period to the next."""

    paper: str
    memory: Callable[[State, int], State] = nothing  # (private adapter's start, periods) -> "memory/name" at its start
    begin: Callable[[State, Lesson], State] = unchanged  # what a user has as a later period begins -> what they begin it with
    view: Callable[[State], State] = plainly  # what is applied of it
    penalty: Callable[[State], State] | None = None  # what a user has -> what is added to the gradient, "private/name"
    replays: bool = False  # trains on examples of earlier periods, too
    unnoised: bool = False  # looks at examples beside training, without noise
    # private adapters for which it means something
    kinds: tuple[str, ...] = ("lora", "core", "mixed", "ia3", "prompt", "late_prompt")


def modules(state: State, block: str = "private") -> Iterator[str]:
    """The "block/module." before "lora_A.weight" of every LoRA in a state."""
    return (name.removesuffix(A) for name in state if name.startswith(f"{block}/") and name.endswith(f".{A}"))


def remembered(name: str, what: str) -> str:
    """Where something about the private tensor, or module, is remembered."""
    return f"{MEMORY}/{what}/{name.removeprefix('private/')}"


def summed(past: str) -> Callable[[State], State]:
    """A view in which the private LoRA is added to a frozen one that is remembered as ``past``: their factors stand side by side."""

    def view(state: State) -> State:
        found = dict(state)
        for name in modules(state):
            a, b = state[name + A], state[name + B]
            found[name + A] = torch.cat([a, _like(state[remembered(name, past) + A], a)], -2)
            found[name + B] = torch.cat([b, _like(state[remembered(name, past) + B], b)], -1)
        return found

    return view


def _like(value: Tensor, other: Tensor) -> Tensor:
    """Spread over the axes that another has in front."""
    return value.to(other).expand(*other.shape[:-2], *value.shape[-2:])

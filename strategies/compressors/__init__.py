"""Compressors of what nodes send. Each is a projection: what has been pressed once is pressed to itself, and its form holds all of it.

| kind | bytes of a number | made of | unbiased | under guarantee U, where the server adds the noise |
|---|---|---|---|---|
| none | 4 | | | yes |
| bf16, fp16 | 2 | a message | nearest | refused: it would follow the users' clips, or their sum |
| int8 | 1 + 1/256 | a message | yes | refused, likewise |
| topk | 6 of each that is sent | each user's update, before sums and clips | with memory | yes |

A message is a node's one sum, where the aggregator needs no more, else one user's release. Under guarantee E, and where users noise
their own releases, a release is private before it is pressed, and all of this is post-processing.
"""

import torch

from configs.wire import Wire
from strategies.compressors import bf16, fp16, int8, topk
from strategies.tree import State

PAPERS = {"bf16": "arXiv 1905.12322", "fp16": "arXiv 1710.03740", "int8": "arXiv 1610.02132", "topk": "arXiv 1809.07599"}


def message(update: State, wire: Wire, coins: torch.Generator) -> State:
    """The update of a message as the wire holds it."""
    if wire.kind == "bf16":
        return {name: bf16.press(value) for name, value in update.items()}
    if wire.kind == "fp16":
        return {name: fp16.press(value) for name, value in update.items()}
    if wire.kind == "int8":
        return {name: int8.press(update[name], coins) for name in sorted(update)}
    return update


def user(update: State, memory: State, wire: Wire) -> tuple[State, State]:
    """A user's update as it goes into a message, and what the user's node remembers of it."""
    if wire.kind != "topk":
        return update, memory
    sent, after = topk.remembering(update, memory if wire.feedback else {}, wire.keep)
    return sent, after if wire.feedback else {}


def down(shared: State, wire: Wire) -> State:
    """The shared adapter as nodes receive it."""
    return {name: bf16.press(value) for name, value in shared.items()} if wire.down == "bf16" else shared

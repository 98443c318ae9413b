"""A trainer that misbehaves: ``python -m simulations.deploy.faulty KIND``, for trials of a server's defences only.

It answers as `client.answers` does and spoils the updates on their way out: nan, huge, shape, replayed; or it is slow; or it has
another base model than the run (base).
"""

import signal
import sys
import time
from collections.abc import Callable

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict

from client import answers, resident, wire
from client import base as bases
from configs.scenario import Model

FIRST: list[RecordDict] = []  # what was sent first, for a replay
SLOW = 10.0  # times as long as the training took


def spoil(kind: str, value: torch.Tensor) -> torch.Tensor:
    """One tensor of an update, spoilt."""
    if kind == "nan":
        return torch.full_like(value, torch.nan)
    if kind == "huge":
        return torch.full_like(value, 1e30)
    return torch.cat([value, value]) if kind == "shape" else value


def spoilt(kind: str, content: RecordDict) -> RecordDict:
    """An answer to an order to train."""
    if kind == "replayed":
        FIRST.append(content)
        return FIRST[0]
    found = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            found[name] = wire.record_of_tensors({n: spoil(kind, v) for n, v in wire.tensors_of(content, name).items()})
        else:
            found[name] = record
    return found


def answer(kind: str) -> Callable[[Message, Context], Message]:
    """`client.answers.app` with a fault of some kind."""

    def faulty(message: Message, context: Context) -> Message:
        began = time.perf_counter()
        reply = answers.app(message, context)
        if message.metadata.message_type == "train":
            if kind == "slow":
                time.sleep(SLOW * (time.perf_counter() - began))
            reply.content = spoilt(kind, reply.content)
        return reply

    return faulty


def another(model: Model, device: str) -> bases.Base:
    """`client.base.load` with one number of the base changed."""
    base = load(model, device)
    with torch.no_grad():
        next(base.model.parameters()).view(-1)[0] += 1.0
    return base


load = bases.load

if __name__ == "__main__":
    if sys.argv[1] == "base":
        bases.load = another
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    resident.serve(answer(sys.argv[1]))

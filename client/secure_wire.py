"""What travels over Flower for a secure sum, besides what `client/wire.py` describes, in both directions.

=============  ==============  =====================================================================================
record         direction       holds
=============  ==============  =====================================================================================
``order``      to the node     as in `client.wire`: with ``shared`` and ``sum`` it begins a round
``sum``        to the node     `client.secure.Call`, and what the node is called in the sum
``step``       to the node     which step of `client.masking`, of which run, and what the node is called in the sum
``masking``    both            one message of `client.masking`, bytes as an array of uint8
=============  ==============  =====================================================================================
"""

import typing

from flwr.app import ConfigRecord, RecordDict

from client import wire
from client.secure import Call
from client.wire import Order, bytes_of, expect, fields_of, record_of_bytes

ACTION = "secure"  # of Flower's messages: "train.secure" begins a sum, "query.secure" goes on with it
SUM = {"session": str, "users": int, "nodes": int, "noise": float, "me": str}
STEP = {"step": str, "run": str, "me": str}


class Step(typing.NamedTuple):
    """One step of a sum that has begun."""

    step: str  # "share", "mask" or "reveal"
    run: str
    me: str  # the node's name in the sum
    message: bytes


def encode_begin(order: Order, shared: RecordDict, call: Call, me: str) -> RecordDict:
    """Write an order whose answer begins a sum."""
    said = ConfigRecord({
        "session": call.session, "users": call.users, "nodes": call.nodes, "noise": float(call.noise), "me": me,
    })  # fmt: skip
    return RecordDict({**wire.encode_order(order, shared), "sum": said})


def decode_begin(content: RecordDict) -> tuple[Order, Call, str]:
    """Read an order, the sum's call, and what the node is called in it."""
    expect(content, {"order", "shared", "sum"}, {"beside"})
    said = fields_of(content, "sum", SUM)
    order = wire.decode_order(RecordDict({name: record for name, record in content.items() if name != "sum"}))
    return order, Call(said["session"], said["users"], said["nodes"], said["noise"]), said["me"]


def encode_step(step: Step) -> RecordDict:
    """Write a step."""
    return RecordDict({"step": ConfigRecord({"step": step.step, "run": step.run, "me": step.me}), **encode_answer(step.message)})


def decode_step(content: RecordDict) -> Step:
    """Read a step."""
    expect(content, {"step", "masking"})
    said = fields_of(content, "step", STEP)
    return Step(said["step"], said["run"], said["me"], bytes_of(content, "masking", "message"))


def encode_answer(message: bytes) -> RecordDict:
    """Write a message of the protocol."""
    return RecordDict({"masking": record_of_bytes("message", message)})


def decode_answer(content: RecordDict) -> bytes:
    """Read a message of the protocol. Raises `WireError` for anything else."""
    expect(content, {"masking"})
    return bytes_of(content, "masking", "message")

"""A trainer that stays: one process beside the SuperNode that keeps the base model, the data and the adapters' tower in memory.

Flower starts a process for each message, and each would load the base again. Where a trainer listens on ``$HOMING_HOME/trainer.sock``,
that process only passes the message on (`ask`) and the trainer answers (`serve`) with the code of this machine, `client.answers`.
Whoever can write to the socket can do what a SuperNode's process can: it is for its owner alone (mode 0600). A trainer that is gone
costs time and no round: the process then answers by itself.

``python -m client.resident`` is a trainer. It works on one message at a time, in the order in which they come.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Proto  # type: ignore[attr-defined]

from configs.errors import InputError
from configs.home import home

SOCKET = "trainer.sock"
LONGEST = 107  # bytes of a socket's path
PROTOCOL = 2
PART, MOST = 2**24, 2**31  # bytes of a frame, and of all frames of a message, at most
ANSWER, ERROR = b"a", b"e"
Answer = Callable[[Message, Context], Message]
log = logging.getLogger("flwr.homing")


class TrainerError(RuntimeError):
    """What a trainer said instead of an answer."""


# ---------------------------------------------------------------------- the process of a message
def ask(message: Message, context: Context) -> Message | None:
    """The trainer's answer; None where none runs, or where Ray plays this node. Raises `TrainerError` for what has gone wrong there."""
    ray = sys.modules.get("ray")
    path = home() / SOCKET
    if not path.exists() or (ray is not None and ray.is_initialized()):
        return None
    try:
        trainer = Client(str(path), "AF_UNIX")
    except OSError as error:
        log.warning("no trainer answers at %s (%s): this process answers by itself", path, error)
        return None
    with trainer:
        try:
            trainer.send_bytes(_head(context))
            send(trainer, message_to_proto(message).SerializeToString())
            kind, said = trainer.recv_bytes(len(ANSWER)), receive(trainer)
        except (EOFError, OSError):
            raise TrainerError("the trainer ended before it answered; its log says why") from None
    if kind != ANSWER:
        raise TrainerError(said.decode(errors="replace"))
    try:
        return message_from_proto(Proto.FromString(said))
    except Exception as error:  # whatever has come instead of a message
        raise TrainerError(f"the trainer's answer is no message: {str(error)[:200]}") from None


def _head(context: Context) -> bytes:
    told = {"protocol": PROTOCOL, "run": context.run_id, "node": context.node_id, "node_config": dict(context.node_config),
            "run_config": dict(context.run_config)}  # fmt: skip
    return json.dumps(told).encode()


def send(to: Connection, data: bytes) -> None:
    """Send in frames of `PART` bytes; a shorter one is the last."""
    view = memoryview(data)
    for at in range(0, len(data) + 1, PART):
        to.send_bytes(view[at : at + PART])


def receive(by: Connection) -> bytes:
    """What `send` has sent. Raises `OSError` before it makes room for a larger frame, or for more than `MOST` bytes."""
    found = bytearray()
    while True:
        frame = by.recv_bytes(PART)
        found += frame
        if len(frame) < PART:
            return bytes(found)
        if len(found) > MOST:
            raise OSError(f"a message has more than {MOST} bytes")


# ---------------------------------------------------------------------- the trainer
def serve(answer: Answer, folder: Path | None = None) -> None:
    """Answer until the process is told to end (SIGTERM, SIGINT). Raises `InputError` where another trainer is at work in this home."""
    from filelock import FileLock, Timeout

    folder = folder or home()
    path = folder / SOCKET
    if len(os.fsencode(path)) > LONGEST:
        raise InputError(f"HOMING_HOME is too long for a socket in it: {path} has more than {LONGEST} bytes")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{SOCKET}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another trainer is at work in {folder}") from None
    with lock:
        path.unlink(missing_ok=True)  # of a trainer that was killed
        mask = os.umask(0o177)
        try:
            listener = Listener(str(path), "AF_UNIX")
        finally:
            os.umask(mask)
        log.info("a trainer listens at %s", path)
        with listener:
            while True:
                with listener.accept() as caller:
                    _turn(caller, answer)


def _turn(caller: Connection, answer: Answer) -> None:
    """Take one message and send what comes of it. A caller who leaves in between, or sends no frames, costs nothing but the answer."""
    try:
        head, body = caller.recv_bytes(PART), receive(caller)
        kind, said = _answered(head, body, answer)
        caller.send_bytes(kind)
        send(caller, said)
    except (EOFError, OSError) as error:
        log.warning("a caller left before it had its answer: %s", error)


def _answered(head: bytes, body: bytes, answer: Answer) -> tuple[bytes, bytes]:
    began = time.perf_counter()
    try:
        told: dict[str, Any] = json.loads(head)
        if told.get("protocol") != PROTOCOL:
            raise InputError(f"the bundle and this trainer are of different versions ({told.get('protocol')} and {PROTOCOL})")
        message = message_from_proto(Proto.FromString(body))
        context = Context(told["run"], told["node"], told["node_config"], RecordDict(), told["run_config"])
        said = message_to_proto(answer(message, context)).SerializeToString()
        log.info("answered %s in %.1f s", message.metadata.message_type, time.perf_counter() - began)
    except Exception as error:  # it must not end the trainer
        log.exception("no answer")
        return ERROR, f"{type(error).__name__}: {error}".encode(errors="replace")
    return ANSWER, said


def main() -> None:
    """Run a trainer until it is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from client import answers

    try:
        serve(answers.app)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()

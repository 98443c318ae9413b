"""Bytes that come over a wire are read, or refused by the error that is documented, and no room is made for what is not there."""

import io
import json
import math
import random
import resource
import socket
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client import arrays, masking, resident, secure_wire, wire
from client.masking import MaskingError, Terms
from client.secure import Call
from client.wire import Kept, Order, WireError
from server.grid import answered
from strategies.admission import refusal
from strategies.base import Release, Task
from strategies.compressors import bf16, fp16, int8, topk
from strategies.tree import State, generator
from tests.server.flower_world import LocalGrid

MANY = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], database=None
)
ROOM = 8 * 2**20  # bytes that reading a message of a few kilobytes may take
SHARED: State = {f"q.lora_{x}": torch.zeros(16, 40) for x in "AB"} | {"c": torch.zeros(3)}
X = torch.randn(16, 40, generator=generator("fuzz"))
UPDATES: tuple[State, ...] = (
    {"q.lora_A": X, "q.lora_B": bf16.press(X), "c": torch.ones(3)},
    {"q.lora_A": fp16.press(X), "q.lora_B": int8.press(X, generator(0))},
    {"q.lora_A": topk.press(X, 0.1), "q.lora_B": topk.press(X, 0.02)},
)  # fmt: skip
ROW = {"user": "u", "seen": True, "train": 3, "test": 1, "shared.nll": 0.5, "base.auc": None}
ORDER = Order(Task(2, SHARED), "r", ("u", "v"), "test", ("base",))
MESSAGES: tuple[tuple[RecordDict, Callable[[RecordDict], Any]], ...] = (
    *((wire.encode_releases([Release(u, 3.0, 2)] * 2, SHARED), partial(wire.decode_releases, shared=SHARED)) for u in UPDATES),
    (wire.encode_order(ORDER, wire.encode_shared(UPDATES[1])), wire.decode_order),
    (wire.encode_rows([ROW, {**ROW, "user": "w"}]), wire.decode_rows),
    (wire.encode_kept(Kept(("u", "v"), 3, True, ("scores",))), wire.decode_kept),
    (secure_wire.encode_begin(ORDER, wire.encode_shared(SHARED), Call("s", 2, 2, 0.0), "me"), secure_wire.decode_begin),
    (secure_wire.encode_step(secure_wire.Step("mask", "r", "me", b"bytes")), secure_wire.decode_step),
    (secure_wire.encode_answer(b"bytes"), secure_wire.decode_answer),
)  # fmt: skip


# ---------------------------------------------------------------------- what may be in a record
def header(descr: str, shape: object, fortran: bool = False) -> bytes:
    said = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(said).to_bytes(2, "little") + said


DESCRS = st.sampled_from(
    ["<f4", "<f2", "<i2", "|i1", "|u1", "<f8", ">f4", "|O", "|V8", "<U9", "<M8[ns]", "<f4,<f4", "(9,)<f4", "nonsense", ""]
)
SHAPES = st.sampled_from([
    (), (0,), (3,), (-1,), (10**12,), (10**30,), (2**63, 0), (0, 2**63), (16, 40), (-2, -3), (1,) * 80, (True,), "(", "None", "9",
    "(" * 300, "(1.5,)",
])  # fmt: skip
BODIES = st.binary(max_size=64) | st.just(bytes(4 * 640)) | st.just(np.float32(math.nan).tobytes() * 640)
BLOBS = st.builds(lambda d, s, f, b: header(d, s, f) + b, DESCRS, SHAPES, st.booleans(), BODIES) | st.binary(max_size=200)
TENSORS = st.sampled_from([torch.float32, torch.float16, torch.int16, torch.int8, torch.uint8, torch.int64, torch.float64])
STYPES = st.sampled_from(["numpy.ndarray", "", "pickle"])
ARRAYS = st.builds(lambda data, stype: Array("float32", (2,), stype, data), BLOBS, STYPES) | st.builds(
    lambda kind, shape, at: Array(torch.full(shape, at).to(kind).numpy()), TENSORS, st.sampled_from([(), (3,), (16, 40), (1,), (0,)]),
    st.sampled_from([0.0, 1.0, 127.0, -1.0]),
)  # fmt: skip
TEXTS = st.sampled_from(["", "u", "x" * 5000, "update.0", "..", "\0", "release.0", "who.9", "é" * 40])
NUMBERS = st.sampled_from([0, 1, -1, 2**62, -(2**63), 0.0, 1e308, -1.5, math.nan, math.inf])
LISTS = st.lists(st.integers(-5, 2**62), max_size=3) | st.lists(st.floats(), max_size=3)
SAID = (
    NUMBERS | st.booleans() | TEXTS | st.binary(max_size=9) | LISTS | st.lists(TEXTS, max_size=3) | st.lists(st.booleans(), max_size=3)
)
RECORDS = (
    st.dictionaries(TEXTS, ARRAYS, max_size=3).map(ArrayRecord)
    | st.dictionaries(TEXTS, SAID, max_size=3).map(ConfigRecord)  # type: ignore[arg-type]
    | st.dictionaries(TEXTS, NUMBERS | LISTS, max_size=3).map(MetricRecord)
)
NAMES = st.sampled_from(["order", "shared", "beside", "sum", "step", "masking", "kept"]) | st.builds(
    lambda kind, n: f"{kind}.{n}", st.sampled_from(["update", "beside", "release", "who", "scores"]), st.integers(0, 3)
)


@st.composite
def changed(draw: st.DrawFn) -> tuple[RecordDict, Callable[[RecordDict], Any]]:
    """A message that somebody has changed, and who reads it."""
    whole, read = draw(st.sampled_from(MESSAGES))
    content = RecordDict({name: type(record)(dict(record)) for name, record in whole.items()})  # type: ignore[arg-type]
    for _ in range(draw(st.integers(1, 3))):
        names = list(content)
        match draw(st.integers(0, 4)):
            case 0 if names:
                del content[draw(st.sampled_from(names))]
            case 1:
                content[draw(NAMES)] = draw(RECORDS)
            case _ if names:
                record: Any = content[draw(st.sampled_from(names))]
                keys = sorted(record)
                key = draw(st.sampled_from(keys) | TEXTS) if keys else draw(TEXTS)
                if draw(st.booleans()) and key in record:
                    del record[key]
                else:
                    values = {ArrayRecord: ARRAYS, ConfigRecord: SAID, MetricRecord: NUMBERS | LISTS}[type(record)]
                    record[key] = draw(values | bytes_of(record[key]) if isinstance(record.get(key), Array) else values)
            case _:
                pass
    return content, read


def bytes_of(array: Array) -> st.SearchStrategy[Array]:
    """An array with a byte of it changed, cut, or with more behind it."""
    data = array.data

    def edit(at: int, byte: int, how: int) -> Array:
        at %= len(data) + 1
        found = (data[:at] + bytes([byte]) + data[at + 1 :], data[:at], data + bytes(byte))[how]
        return Array("float32", (2,), "numpy.ndarray", found)

    return st.builds(edit, st.integers(0, 2**16), st.integers(0, 255), st.integers(0, 2))


def read_or_refused(read: Callable[[Any], Any], what: Any, *errors: type[Exception]) -> Any:
    """What comes of it; None where it is refused. No other error passes, and no more than `ROOM`."""
    tracemalloc.start()
    try:
        return read(what)
    except errors:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < ROOM, f"{peak} bytes"


@MANY
@given(changed())
def test_a_message_that_somebody_has_changed_is_read_or_refused(made: tuple[RecordDict, Callable[[RecordDict], Any]]) -> None:
    content, read = made
    found = read_or_refused(read, content, WireError)
    for release in found if isinstance(found, list) else ():
        if isinstance(release, Release):
            assert all(value.dtype == torch.float32 for value in release.update.values())
            assert refusal(release, SHARED, 1e4) is None or isinstance(refusal(release, SHARED, 1e4), str)


@MANY
@given(st.dictionaries(NAMES, RECORDS, max_size=4).map(RecordDict))
def test_records_of_any_kind_are_read_or_refused_by_every_reader(content: RecordDict) -> None:
    for _, read in MESSAGES:
        read_or_refused(read, content, WireError)


@MANY
@given(BLOBS)
def test_bytes_are_an_array_or_none(data: bytes) -> None:
    found = read_or_refused(lambda x: arrays.read(x, ("<f4", "<f2", "<i2", "|i1", "|u1")), data, ValueError)
    assert found is None or found.nbytes <= len(data)


def test_no_room_is_made_for_an_array_that_is_not_there() -> None:
    """As numpy itself would: a header of a few bytes that asks for gigabytes."""
    for shape in ((10**9,), (2**40,), (10**6, 10**6)):
        data = header("<f4", shape)
        with pytest.raises(ValueError, match="needs others"):
            arrays.read(data, ("<f4",))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lies = b'{"c":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
    for said in (lies, lies.replace(b"4000000000", b"0"), lies[:-1], b'{"c":' * 40):
        record = wire.record_of_bytes("tensors", len(said).to_bytes(8, "little") + said)
        with pytest.raises(WireError, match="a tensor cannot be read"):
            wire.decode_releases(RecordDict({"update.0": record, "release.0": MetricRecord({"weight": 1.0, "users": 1})}), SHARED)
    twice = safetensors.torch.save({"0:c": torch.ones(1), "1:c": torch.ones(1)})
    with pytest.raises(WireError, match="one name"):
        wire.tensors_of(RecordDict({"shared": wire.record_of_bytes("tensors", twice)}), "shared")
    big = ArrayRecord({"tensors": Array("uint8", (1,), "numpy.ndarray", header("|u1", (10**10,)))})
    with pytest.raises(WireError, match="needs others"):
        wire.decode_releases(RecordDict({"update.0": big, "release.0": MetricRecord({"weight": 1.0, "users": 1})}), SHARED)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.usefixtures("home")
def test_an_answer_that_was_changed_is_counted_and_ends_no_round() -> None:
    LocalGrid("")  # messages need a task to be made in
    task, draw, failed = Task(1, SHARED), random.Random(0), Counter[str]()
    whole = wire.encode_releases([Release(UPDATES[2], 3.0, 1)], SHARED)
    for _ in range(60):
        content = RecordDict({n: type(r)(dict(r)) for n, r in whole.items()})  # type: ignore[arg-type]
        record: Any = content[draw.choice(["update.0", "beside.0"])]
        key = draw.choice(sorted(record))
        data = bytearray(record[key].data)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        record[key] = Array("float32", (2,), "numpy.ndarray", bytes(data))
        replies = [Message(c, reply_to=Message(RecordDict(), n, "train")) for n, c in enumerate((content, whole))]
        found = answered({0: ["a"], 1: ["b"]}, task, replies, failed)
        assert 1 in found and all(r.users == 1 for some in found.values() for r in some)
    assert failed.total() > 10


# ---------------------------------------------------------------------- sums under masks
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
JSON = st.recursive(PLAIN, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXTS, x, max_size=3), max_leaves=6)
TERMS = Terms("s", 4, 2)
STEPS = {"share": ("roster", masking.share), "mask": ("boxes", lambda s, m: masking.mask(s, m, torch.zeros(4, dtype=torch.int64))),
         "reveal": ("ask", masking.reveal)}  # fmt: skip
FIELDS = st.sampled_from(["names", "keys", "active", "boxes", "kept", "lost"])


@MANY
@given(
    st.sampled_from(sorted(STEPS)),
    st.dictionaries(FIELDS, JSON | st.just(["me", "b"]), max_size=4),
    st.binary(max_size=60),
    st.booleans(),
)
def test_a_message_of_a_sum_is_taken_or_refused(step: str, body: dict[str, Any], junk: bytes, packed: bool) -> None:
    state, _ = masking.advertise(TERMS, "me")
    kind, take = STEPS[step]
    message = masking.pack(kind, TERMS, "me", body, junk) if packed else junk
    read_or_refused(lambda m: take(replace(state, step=step, names=("me", "b"), active=("me", "b")), m), message, MaskingError)


# ---------------------------------------------------------------------- a trainer's socket
@pytest.fixture
def pair() -> Iterator[tuple[Connection, Connection]]:
    """Both ends of a socket."""
    ends = socket.socketpair(socket.AF_UNIX)
    a, b = (Connection(end.detach()) for end in ends)
    with a, b:
        yield a, b


def answered_by(message: Message, _context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)


HEADS = JSON.map(lambda x: json.dumps(x).encode()) | st.binary(max_size=40) | st.just(b"[" * 5000) | st.builds(
    lambda told: json.dumps({"protocol": resident.PROTOCOL, **told}).encode(),
    st.dictionaries(st.sampled_from(["run", "node", "node_config", "run_config"]), JSON, max_size=4),
)  # fmt: skip


@settings(MANY, max_examples=80)
@given(HEADS, st.binary(max_size=80))
def test_a_trainer_answers_whatever_it_is_sent_with_an_error_or_an_answer(head: bytes, body: bytes) -> None:
    kind, said = resident._answered(head, body, answered_by)
    assert kind in (resident.ANSWER, resident.ERROR) and said


RAW = st.binary(max_size=24) | st.sampled_from(
    [b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff" + b"\x7f" * 8, b"\xff\xff\xff\x00", b"\x00\x00\x00\x02{}"]
)


@settings(MANY, max_examples=80)
@given(st.lists(RAW, max_size=3).map(b"".join))
def test_a_trainer_outlives_bytes_that_are_no_frames_and_makes_no_room_for_those_that_do_not_come(raw: bytes) -> None:
    mine, its = socket.socketpair(socket.AF_UNIX)
    with mine, Connection(its.detach()) as caller:
        mine.sendall(raw)
        mine.shutdown(socket.SHUT_WR)
        tracemalloc.start()
        resident._turn(caller, answered_by)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * resident.PART + ROOM


def test_frames_of_any_length_come_back_as_they_were(pair: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "PART", 8)
    for length in (0, 1, 7, 8, 9, 16, 100):
        data = bytes(range(length))
        resident.send(pair[0], data)
        assert resident.receive(pair[1]) == data
    monkeypatch.setattr(resident, "MOST", 20)
    resident.send(pair[0], bytes(40))
    with pytest.raises(OSError, match="more than 20 bytes"):
        resident.receive(pair[1])


@pytest.mark.parametrize("answer", [(b"a", b"no message"), (b"x", b"?"), (b"e", b"\xff\xfe"), (b"long kind", b"")])
def test_a_process_takes_what_is_no_answer_of_a_trainer_for_an_error(home: Path, answer: tuple[bytes, bytes]) -> None:
    LocalGrid("")
    home.mkdir()

    def lie(listener: Listener) -> None:
        with listener.accept() as caller, suppress(OSError):  # who asked may be gone
            caller.recv_bytes()
            resident.receive(caller)
            caller.send_bytes(answer[0])
            resident.send(caller, answer[1])

    with Listener(str(home / resident.SOCKET), "AF_UNIX") as listener:
        thread = threading.Thread(target=lie, args=(listener,), daemon=True)
        thread.start()
        with pytest.raises(resident.TrainerError):
            resident.ask(Message(RecordDict(), 1, "query"), Context(1, 1, {}, RecordDict(), {}))
        thread.join(10)


def test_the_fuzzers_bytes_are_what_numpy_reads() -> None:
    for data in (header("<f4", (3,)) + bytes(12), header("<f4", (2, 3), True) + bytes(range(24))):
        ours, theirs = arrays.read(data, ("<f4",)), np.load(io.BytesIO(data))
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)

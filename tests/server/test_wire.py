"""What travels over Flower comes back as it was, and what is not in the table of `client.wire` does not come back at all."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from client import wire
from client.wire import Kept, Order, WireError
from strategies.base import Release, Task
from strategies.tree import State
from tests.server.flower_world import through

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COUNT = st.integers(0, 2**40)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def states(draw: st.DrawFn) -> State:
    found = {}
    for name in draw(st.lists(TEXT, unique=True, max_size=3)):
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        values = draw(st.lists(st.floats(width=32), min_size=math.prod(shape), max_size=math.prod(shape)))
        found[name] = torch.tensor(values, dtype=torch.float32).reshape(shape)
    return found


def equal(a: State, b: State) -> bool:
    """Names, their order, shapes and every bit, so that NaN equals NaN."""
    return list(a) == list(b) and all(a[n].shape == b[n].shape and a[n].numpy().tobytes() == b[n].numpy().tobytes() for n in a)


# ---------------------------------------------------------------------- what comes back
@settings(deadline=None)
@given(
    COUNT.map(lambda n: n + 1), states(), st.lists(TEXT, max_size=3).map(tuple), st.none() | st.integers(0, 99), TEXT,
    st.lists(TEXT, max_size=4).map(tuple), TEXT, st.lists(TEXT, max_size=3).map(tuple), FINITE, st.lists(TEXT, max_size=2).map(tuple),
)  # fmt: skip
def test_an_order_comes_back_as_it_was(round_: int, shared: State, turns: Any, epochs: Any, run: str, users: Any, part: str,
                                       controls: Any, bound: float, origin: Any) -> None:  # fmt: skip
    order = Order(Task(round_, shared, turns, epochs, 3, bound, rows=controls), run, users, part, controls, origin)
    found = wire.decode_order(through(wire.encode_order(order, wire.encode_shared(shared))))
    assert equal(found.task.shared, shared)
    assert (found.task.round, found.task.turns, found.task.epochs) == (round_, turns, epochs)
    assert (found.task.participations, found.task.bound, found.task.rows) == (3, bound, controls)
    assert (found.run, found.users, found.part, found.controls, found.origin) == (run, users, part, controls, origin)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=5).map(tuple), COUNT, st.booleans(), st.lists(TEXT, max_size=2).map(tuple))
def test_what_a_node_keeps_comes_back_as_it_was(users: Any, partitions: int, simulated: bool, lets: Any) -> None:
    kept = Kept(users, partitions, simulated, lets)
    assert wire.decode_kept(through(wire.encode_kept(kept))) == kept


SUMS = st.dictionaries(st.sampled_from(wire.SUMS), FINITE)


@settings(deadline=None)
@given(st.lists(st.tuples(states(), FINITE, st.integers(1, 2**31), SUMS), max_size=3))
def test_releases_come_back_as_they_were_and_in_order(made: list[tuple[State, float, int, dict[str, float]]]) -> None:
    sent = [Release(*fields) for fields in made]
    shared = {name: torch.zeros_like(value) for r in sent for name, value in r.update.items()}
    found = wire.decode_releases(through(wire.encode_releases(sent, shared)), shared)
    assert len(found) == len(sent)
    for a, b in zip(found, sent, strict=True):
        assert equal(a.update, b.update) and (a.weight, a.users, a.metrics) == (b.weight, b.users, b.metrics)


COLUMNS = st.dictionaries(TEXT.map(lambda name: f"{name}.nll"), st.none() | FINITE, max_size=3)
ROWS = st.lists(st.tuples(TEXT, st.booleans(), COUNT, COUNT, COLUMNS), max_size=5)


@settings(deadline=None)
@given(ROWS)
def test_the_rows_of_an_evaluation_come_back_with_every_number_that_is_undefined(made: list[Any]) -> None:
    sent = [{"user": user, "seen": seen, "train": train, "test": test, **scores} for user, seen, train, test, scores in made]
    found = wire.decode_rows(through(wire.encode_rows(sent)))
    assert sorted(map(repr, found)) == sorted(map(repr, ({k: as_float(v, k) for k, v in row.items()} for row in sent)))
    for columns in {tuple(row) for row in sent}:  # rows with equal columns keep their order
        assert [r["user"] for r in found if tuple(r) == columns] == [r["user"] for r in sent if tuple(r) == columns]


def as_float(value: Any, column: str) -> Any:
    return value if value is None or column in wire.WHO else float(value)


# ---------------------------------------------------------------------- what does not
class Kind(NamedTuple):
    """A message of each kind, and who reads it."""

    make: Callable[[], RecordDict]
    read: Callable[[RecordDict], Any]


SHARED = {"q.lora_A": torch.ones(2, 3), "q.lora_B": torch.zeros(3, 2)}
RELEASE = Release(SHARED, 3.0, 2, dict.fromkeys(wire.METRICS, 1.0))
ROW = {"user": "u", "seen": True, "train": 3, "test": 1, "shared.nll": 0.5, "base.auc": None}
ASKED = Order(Task(2, SHARED, rows=("shared",)), "r", ("u", "v"), "test", ("base",), ("h",))
KINDS = {
    "order": Kind(lambda: wire.encode_order(ASKED, wire.encode_shared(SHARED)), wire.decode_order),
    "kept": Kind(lambda: wire.encode_kept(Kept(("u", "v"), 3, True, ("scores",))), wire.decode_kept),
    "releases": Kind(lambda: wire.encode_releases([RELEASE, RELEASE], SHARED), lambda content: wire.decode_releases(content, SHARED)),
    "rows": Kind(lambda: wire.encode_rows([ROW, {**ROW, "user": "w"}]), wire.decode_rows),
}  # fmt: skip
VALUES: tuple[Any, ...] = (1, 1.5, True, "x", b"x", [1], [1.5], [True], ["x"], [b"x"])
OBJECTS = b"\x93NUMPY\x01\x00" + b"F\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }".ljust(69) + b"\n"
NUMBERS: tuple[Any, ...] = (math.nan, math.inf, -math.inf, [1], [1.5])


def fresh(content: RecordDict) -> RecordDict:
    """A copy whose records can be changed."""
    return RecordDict({name: type(record)(dict(record)) for name, record in content.items()})  # type: ignore[arg-type]


def tampered(kind: Kind) -> Iterator[tuple[str, RecordDict]]:
    """Everything that can be wrong with a record or a key, one at a time; a value of the right type is not wrong."""
    whole = kind.make()
    strangers = {"diary": ArrayRecord(SHARED), "note": ConfigRecord({"x": 1}), "sums": MetricRecord({"x": 1.0})}  # type: ignore[arg-type]
    for name, record in strangers.items():
        yield f"extra {name}", RecordDict({**fresh(whole), name: record})
    for name, record in whole.items():
        yield f"no {name}", RecordDict({n: r for n, r in fresh(whole).items() if n != name})
        yield f"{name} renamed", RecordDict({n.replace(name, f"{name}0"): r for n, r in fresh(whole).items()})
        for other in strangers.values():
            if type(other) is not type(record):
                yield f"{name} as {type(other).__name__}", RecordDict({**fresh(whole), name: other})
        if isinstance(record, MetricRecord):
            yield f"{name} with all its keys as ConfigRecord", RecordDict({**fresh(whole), name: ConfigRecord(dict(record))})  # type: ignore[arg-type]
        for key in record:
            yield from changed_keys(whole, name, key)


def changed_keys(whole: RecordDict, name: str, key: str) -> Iterator[tuple[str, RecordDict]]:
    was: Any = whole[name][key]
    if isinstance(whole[name], ConfigRecord):
        yield f"{name} without {key}", edited(whole, name, lambda r: r.pop(key))
        yield f"{name} with more", edited(whole, name, lambda r: r.update(more=was))
        for value in VALUES:
            if type(value) is not type(was) or (isinstance(value, list) and type(value[0]) is not type(was[0])):
                yield f"{name}.{key} = {value!r}", edited(whole, name, lambda r, v=value: r.update({key: v}))
    if name.startswith("release"):
        yield f"{name} with accuracy", edited(whole, name, lambda r: r.update(accuracy=0.5))
        for value in NUMBERS:
            yield f"{name}.{key} = {value!r}", edited(whole, name, lambda r, v=value: r.update({key: v}))
    if isinstance(whole[name], ArrayRecord):
        for dtype in (np.float64, np.float16, np.int32, np.int64, np.uint8, np.bool_, np.complex64, np.str_):
            array = Array(np.zeros((2, 3), dtype))
            yield f"{name}.{key} of {dtype.__name__}", edited(whole, name, lambda r, a=array: r.update({key: a}))
        for label, data in (("bytes", b"no array"), ("nothing", b""), ("objects", OBJECTS)):
            array = Array("float32", (2, 3), "numpy.ndarray", data)
            yield f"{name}.{key} of {label}", edited(whole, name, lambda r, a=array: r.update({key: a}))
        lying = Array("float32", (2, 3), "numpy.ndarray", Array(np.zeros((2, 3))).data)
        yield f"{name}.{key} that says float32 and is not", edited(whole, name, lambda r: r.update({key: lying}))


def edited(whole: RecordDict, name: str, edit: Callable[[Any], object]) -> RecordDict:
    content = fresh(whole)
    edit(content[name])
    return content


def refused(kind: Kind, content: RecordDict) -> bool:
    try:
        kind.read(content)
    except WireError:
        return True
    return False


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_whatever_is_not_in_the_table_makes_the_whole_message_unreadable(kind: Kind) -> None:
    assert not refused(kind, fresh(kind.make()))
    cases = list(tampered(kind))
    assert len(cases) > 20
    assert [what for what, content in cases if not refused(kind, content)] == []


@pytest.mark.parametrize("users", [0, -1, 1.0, 2.5])
def test_a_release_speaks_for_a_whole_number_of_users_of_at_least_one(users: Any) -> None:
    with pytest.raises(WireError, match="a release of"):
        wire.decode_releases(edited(KINDS["releases"].make(), "release.0", lambda r: r.update(users=users)), SHARED)


def test_the_columns_of_an_evaluation_are_as_long_as_its_users_and_do_not_overwrite_them() -> None:
    for column, values in (("shared.nll", [0.5]), ("shared.nll", 0.5), ("test", [9.0, 9.0]), ("nll", [0.5, 0.5])):
        with pytest.raises(WireError):
            wire.decode_rows(edited(KINDS["rows"].make(), "scores.0", lambda r, c=column, v=values: r.update({c: v})))


@settings(deadline=None)
@given(st.dictionaries(TEXT.filter(lambda name: name not in wire.METRICS), FINITE, min_size=1, max_size=4))
def test_a_number_of_a_release_that_is_not_declared_stays_home_and_would_not_be_read(private: dict[str, float]) -> None:
    sent = wire.encode_releases([Release(SHARED, 3.0, 1, {**private, "loss": 2.0})], SHARED)
    assert set(sent["release.0"]) == {"weight", "users", "loss"}
    assert wire.decode_releases(sent, SHARED)[0].metrics == {"loss": 2.0}
    for name in private.keys() - {"weight", "users"}:
        with pytest.raises(WireError, match="a release says"):
            wire.decode_releases(edited(sent, "release.0", lambda r, n=name: r.update({n: private[n]})), SHARED)


def test_a_private_tensor_in_a_release_stops_the_message_before_it_leaves() -> None:
    with pytest.raises(WireError, match=r"'core\.weight' is no tensor of the shared adapter"):
        wire.encode_releases([RELEASE, Release({**SHARED, "core.weight": torch.ones(2)}, 1.0)], SHARED)


def test_adapters_travel_as_float32_whatever_they_were_trained_in() -> None:
    record = wire.encode_state({"w": torch.ones(2, dtype=torch.float64, requires_grad=True), "v": torch.ones(2, dtype=torch.bfloat16)})
    assert [array.dtype for array in record.values()] == ["float32", "float32"]

"""What travels over Flower, in both directions, and nothing else: orders to a node, releases and rows back.

=============  ==============  =============================================================================
record         direction       holds
=============  ==============  =============================================================================
``order``      to the node     round, turns, epochs, participations, bound, cohort, everyone, run, users; rows, part, controls to score
``shared``     to the node     the shared adapter, in the forms of `strategies.packing`
``beside``     to the node     what these forms need besides, where any does
``kept``       to the server   the users that a node keeps, of how many nodes it is one, if it is only played, what it lets out
``update.N``   to the server   the N-th release's tensors, in these forms
``beside.N``   to the server   what they need besides, where any does
``release.N``  to the server   its weight, its number of users and the sums in `SUMS`
``who.N``      to the server   evaluation: the users of a table whose rows have equal columns
``scores.N``   to the server   its columns; NaN stands for a number that is undefined
=============  ==============  =============================================================================

Reading is as strict as writing: a record, a key or a type that is not in this table makes the whole message a `WireError`.
"""

import math
import shlex
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError

from client import arrays
from configs.scenario import Scenario, load
from strategies import packing, riding
from strategies.base import Release, Task
from strategies.packing import Packed
from strategies.privacy.user_level import BIT
from strategies.tree import State

METRICS = ("tokens", "examples", "loss", "steps", "seconds", "load")  # sums over users; seconds of training, and before it
SUMS = (*METRICS, *riding.SUMS, BIT)  # and scores, and the users within an adaptive bound; no other number of a release leaves a node
WHO = {"user": str, "seen": bool, "train": int, "test": int}  # of a row
KEPT = {"users": list[str], "partitions": int, "simulated": bool, "lets": list[str]}
ORDER = {"round": int, "turns": list[str], "epochs": int, "participations": int, "bound": float, "cohort": int, "everyone": int,
         "rows": list[str], "run": str, "origin": list[str], "users": list[str], "part": str, "controls": list[str]}  # fmt: skip
TENSORS = "tensors"  # the one array of a record of tensors


class WireError(ValueError):
    """A message that is not one of ours."""


@dataclass(frozen=True)
class Order:
    """What a server asks of one node."""

    task: Task
    run: str  # which run it belongs to: names the folder of the node's private adapters
    users: tuple[str, ...] = ()  # of this node, to be trained
    part: str = ""  # evaluate this split: "validation" or "test"
    controls: tuple[str, ...] = ()  # and these rows
    origin: tuple[str, ...] = ()  # hashes of the base model and of the tokenizer that all nodes need; (): not asked


@dataclass(frozen=True)
class Kept:
    """What a node says about itself."""

    users: tuple[str, ...]
    partitions: int = 0  # of how many nodes it is one, where it knows that
    simulated: bool = False  # whether it is only played: its noise then comes from the seed
    lets: tuple[str, ...] = ()  # of counters and scores: what it lets out beside releases


def scenario_of(run_config: Mapping[str, Any]) -> Scenario:
    """The scenario of a run: ``scenario`` is a name in `configs/` or a YAML file, ``overrides`` are key=value by blanks."""
    return load(str(run_config["scenario"]), shlex.split(str(run_config.get("overrides", ""))))


# ---------------------------------------------------------------------- to the node
def encode_state(state: State) -> ArrayRecord:
    """Tensors as float32, for whoever reads Flower's own records; order and names stay."""
    return ArrayRecord({name: value.detach().float().cpu() for name, value in state.items()})


def encode_shared(shared: State) -> RecordDict:
    """The shared adapter for all nodes of a round, encoded once."""
    return _packed(packing.pack(shared), "shared", "beside")


def encode_order(order: Order, shared: RecordDict) -> RecordDict:
    """Write an order. ``shared`` is what `encode_shared` makes of ``order.task.shared``."""
    task = order.task
    said = ConfigRecord({
        "round": task.round,
        "turns": list(task.turns),
        "epochs": -1 if task.epochs is None else task.epochs,  # Flower has no None
        "participations": task.participations,
        "bound": float(task.bound),
        "cohort": task.cohort,
        "everyone": task.everyone,
        "rows": list(task.rows),
        "run": order.run,
        "users": list(order.users),
        "part": order.part,
        "controls": list(order.controls),
        "origin": list(order.origin),
    })  # fmt: skip
    return RecordDict({"order": said, **shared})


def decode_order(content: RecordDict) -> Order:
    """Read an order."""
    expect(content, {"order", "shared"}, {"beside"})
    said = fields_of(content, "order", ORDER)
    epochs = None if said["epochs"] < 0 else said["epochs"]
    shared = _state(content, "shared", "beside", {})
    task = Task(said["round"], shared, tuple(said["turns"]), epochs, said["participations"], said["bound"],
                said["cohort"], said["everyone"], tuple(said["rows"]))  # fmt: skip
    return Order(task, said["run"], tuple(said["users"]), said["part"], tuple(said["controls"]), tuple(said["origin"]))


# ---------------------------------------------------------------------- to the server
def encode_kept(kept: Kept) -> RecordDict:
    """Write which users a node keeps."""
    said = ConfigRecord({
        "users": list(kept.users),
        "partitions": kept.partitions,
        "simulated": kept.simulated,
        "lets": list(kept.lets),
    })  # fmt: skip
    return RecordDict({"kept": said})


def decode_kept(content: RecordDict) -> Kept:
    """Read which users a node keeps."""
    expect(content, {"kept"})
    said = fields_of(content, "kept", KEPT)
    return Kept(tuple(said["users"]), said["partitions"], said["simulated"], tuple(said["lets"]))


def encode_releases(releases: Iterable[Release], shared: State) -> RecordDict:
    """Write releases, or a node's one sum of them. Metrics other than `SUMS` stay home. ``shared``: what the order carried.

    Raises `WireError` for a tensor that is none of the shared adapter's: whatever went wrong before, it does not leave.
    """
    content = RecordDict()
    for index, release in enumerate(releases):
        if hidden := [name for name in release.update if name not in shared]:
            raise WireError(f"'{hidden[0]}' is no tensor of the shared adapter and stays here")
        sums = {name: float(release.metrics[name]) for name in SUMS if name in release.metrics}
        content.update(_packed(packing.pack(release.update, shared), f"update.{index}", f"beside.{index}"))
        content[f"release.{index}"] = MetricRecord({"weight": float(release.weight), "users": release.users, **sums})
    return content


def decode_releases(content: RecordDict, shared: State) -> list[Release]:
    """Read releases. Raises `WireError` for anything that does not belong into one, numbers that are none included.

    ``shared``: what the order carried, of which a form may leave out the shapes. A tensor that is none of it is read all the same.
    """
    count = sum(name.startswith("release.") for name in content)
    expect(content, {f"{kind}.{i}" for kind in ("update", "release") for i in range(count)}, {f"beside.{i}" for i in range(count)})
    return [_release(content, index, shared) for index in range(count)]


def size(content: RecordDict) -> int:
    """Bytes of a message's records, as Flower sends them: arrays with headers and names, and all others as they are serialized."""
    return sum(record.count_bytes() if isinstance(record, ArrayRecord) else len(record.deflate()) for record in content.values())


def encode_rows(rows: Iterable[dict[str, Any]]) -> RecordDict:
    """Write the rows of an evaluation as columns, rows that have the same columns together."""
    tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        tables.setdefault(tuple(row), []).append(row)
    content = RecordDict()
    for index, (columns, table) in enumerate(tables.items()):
        scores = {c: [math.nan if r[c] is None else float(r[c]) for r in table] for c in columns if c not in WHO}
        content[f"who.{index}"] = ConfigRecord({name: [kind(r[name]) for r in table] for name, kind in WHO.items()})
        content[f"scores.{index}"] = MetricRecord(scores)  # type: ignore[arg-type]
    return content


def decode_rows(content: RecordDict) -> list[dict[str, Any]]:
    """Read the rows of an evaluation."""
    count = len(content) // 2
    expect(content, {f"{kind}.{i}" for kind in ("who", "scores") for i in range(count)})
    return [row for index in range(count) for row in _table(content, index)]


def _release(content: RecordDict, index: int, shared: State) -> Release:
    numbers: Any = dict(record_of(content, f"release.{index}", MetricRecord))
    if not {"weight", "users"} <= numbers.keys() <= {"weight", "users", *SUMS}:
        raise WireError(f"a release says {_short(sorted(numbers))}")
    if any(isinstance(v, list) or not math.isfinite(v) for v in numbers.values()):
        raise WireError("a number of a release is none")
    users, weight = numbers.pop("users"), numbers.pop("weight")
    if not isinstance(users, int) or users < 1:
        raise WireError(f"a release of {users} users")
    return Release(_state(content, f"update.{index}", f"beside.{index}", shared), float(weight), users, numbers)


def _table(content: RecordDict, index: int) -> list[dict[str, Any]]:
    who = fields_of(content, f"who.{index}", {name: list[kind] for name, kind in WHO.items()})
    scores: Any = record_of(content, f"scores.{index}", MetricRecord)
    height = len(who["user"])
    if not all(isinstance(v, list) and len(v) == height for v in (*who.values(), *scores.values())):
        raise WireError("the columns of an evaluation have different lengths")
    if not all("." in column for column in scores):
        raise WireError(f"an evaluation has columns {_short(sorted(scores))}, which are not all of the form row.metric")
    heads = [{name: who[name][i] for name in WHO} for i in range(height)]
    return [h | {c: None if math.isnan(v[i]) else v[i] for c, v in scores.items()} for i, h in enumerate(heads)]


def _packed(packed: Packed, values: str, beside: str) -> RecordDict:
    found = RecordDict({values: record_of_tensors(packed.values)})
    if packed.beside:
        found[beside] = record_of_tensors(packed.beside)
    return found


def record_of_tensors(state: State) -> ArrayRecord:
    """Tensors as one array of bytes, as safetensors writes them: Flower moves each array by requests of its own, one after another."""
    numbered = {f"{at:06}:{name}": value.detach().cpu().clone().contiguous() for at, (name, value) in enumerate(state.items())}
    return record_of_bytes(TENSORS, safetensors.torch.save(numbered))  # which sorts them


def record_of_bytes(name: str, data: bytes) -> ArrayRecord:
    """Bytes as Flower carries them."""
    return ArrayRecord({name: Array(np.frombuffer(data, np.uint8))})


def _state(content: RecordDict, values: str, beside: str, shared: State) -> State:
    packed = Packed(tensors_of(content, values), tensors_of(content, beside) if beside in content else {})
    try:
        return packing.unpack(packed, shared)
    except ValueError as error:
        raise WireError(f"a tensor cannot be read: {error}") from None


def tensors_of(content: RecordDict, name: str) -> State:
    """What `record_of_tensors` wrote. Raises `WireError` for anything else, and makes nothing larger than the bytes that came."""
    try:
        found = safetensors.torch.load(bytes_of(content, name, TENSORS))
    except SafetensorError as error:
        raise WireError(f"a tensor cannot be read: {str(error)[:80]}") from None
    if other := [str(value.dtype) for value in found.values() if value.dtype not in packing.DTYPES]:
        raise WireError(f"a tensor is of {other[0]}")
    named = {key.partition(":")[2]: found[key] for key in sorted(found)}
    if len(named) != len(found):
        raise WireError("two tensors have one name")
    return named


def bytes_of(content: RecordDict, name: str, key: str) -> bytes:
    """The bytes of a record that has nothing else. Raises `WireError` for anything else."""
    record = record_of(content, name, ArrayRecord)
    expect(record, {key})
    try:
        if record[key].stype != "numpy.ndarray":
            raise ValueError(f"it is a {record[key].stype[:20]}")
        found = arrays.read(record[key].data, ("|u1",))
    except ValueError as error:
        raise WireError(f"a message cannot be read: {error}") from None
    if found.ndim != 1:
        raise WireError(f"a message has {found.ndim} axes")
    return found.tobytes()


def fields_of(content: RecordDict, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    said: Any = record_of(content, name, ConfigRecord)
    expect(said, fields)
    for key, kind in fields.items():
        value, of = said[key], typing.get_args(kind)
        if type(value) is not (list if of else kind) or any(type(item) is not of[0] for item in (value if of else ())):
            raise WireError(f"'{key}' of '{name}' is {_short(value)}")
    return dict(said)


def record_of(content: RecordDict, name: str, kind: Callable[..., Any]) -> Any:
    found = content[name]
    if type(found) is not kind:
        raise WireError(f"'{name}' is a {type(found).__name__}")
    return found


def expect(found: Mapping[str, Any], names: Iterable[str], perhaps: Iterable[str] = ()) -> None:
    said, wanted = set(found), set(names)
    if not wanted <= said <= wanted | set(perhaps):
        raise WireError(f"a message holds {_short(sorted(said))}, not {sorted(wanted)}")


def _short(value: object) -> str:
    return said if len(said := repr(value)) < 200 else f"{said[:200]}..."

"""A strategy of Flower's as one of our aggregators.

``aggregator: flower.FedYogi`` in a scenario names a class of `flwr.serverapp.strategy`, ``flower.pkg.module.Class`` any other.
"""

import gc
import importlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy
from flwr.serverapp.strategy import Strategy
from flwr.supercore.task_identity import TaskIdentity

from client import wire
from configs.errors import InputError, unknown
from strategies.aggregators import of_flower
from strategies.base import Aggregator, Release
from strategies.tree import State, add

REFUSED = {
    "FedProx": "its proximal term would be the nodes' work, and they do not know it: use flower.FedAvg or fedit",
    "FedXgbBagging": "it aggregates trees",
    "FedXgbCyclic": "it aggregates trees",
    **dict.fromkeys(
        (f"DifferentialPrivacy{side}Side{kind}Clipping" for side in ("Client", "Server") for kind in ("Adaptive", "Fixed")),
        "it wraps another strategy, and what it spends would be in no ledger",
    ),
}
CONTRACTS = {"Result", "Strategy"}  # in Flower's list, and no strategies
ROUND = "/round"  # in the memory, where no attribute has such a name
OURS = {"min_train_nodes": 1, "min_available_nodes": 1, "min_evaluate_nodes": 1}  # sampling is the scenario's
THEIRS = ("fraction_train", "fraction_evaluate", *OURS)


def aggregator(name: str, options: Mapping[str, float]) -> Aggregator:
    """Turn a strategy of Flower's into a pure pair.

    For each round a new object of theirs gets back what its predecessor kept between rounds: arrays, lists and dictionaries
    of arrays, and numbers, which are the aggregator's memory and so are checkpointed. One that keeps anything else is refused
    as soon as it does. Their round number counts the rounds that had a release. A user's weight is ``num-examples``, their mean
    loss ``train_loss``. Results are float32 again, whatever the strategy made of them.
    Raises `InputError` for an unknown name or option.
    """
    make = _maker(name, dict(options))
    make()  # wrong options are told now, not after the first round

    def apply(memory: State, shared: State, found: Iterable[Release]) -> tuple[State, State]:
        individual = [release for release in found if release.update]
        if not individual:
            return memory, shared
        theirs, number = make(), int(memory.get(ROUND, torch.tensor(0))) + 1
        born, unkept = _kept(theirs), _unkept(theirs)
        _restore(theirs, memory)
        names = individual[0].update.keys()
        before = {n: v for n, v in shared.items() if n in names}
        with _task(), _undrawn(), _uncollected():
            theirs.configure_train(number, wire.encode_state(before), ConfigRecord(), cast(Grid, _Nodes(len(individual))))
            arrays, _ = theirs.aggregate_train(number, [_reply(i, r, before) for i, r in enumerate(individual, 1)])
        after = {n: v.float() for n, v in arrays.to_torch_state_dict().items()} if arrays is not None else {}
        if lost := [attribute for attribute, said in _unkept(theirs).items() if said != unkept.get(attribute)]:
            raise InputError(f"aggregator 'flower.{name}' keeps '{lost[0]}' between rounds, which is neither numbers nor arrays")
        changed = [tensors for attribute, tensors in _kept(theirs).items() if not _equal(tensors, born.get(attribute, {}))]
        return {ROUND: torch.tensor(number), **dict(item for tensors in changed for item in tensors.items())}, {**shared, **after}

    return of_flower(lambda _shared: {}, apply)


def _maker(name: str, options: dict[str, Any]) -> Callable[[], Strategy]:
    """A constructor without arguments."""
    kind = _class(name)
    known = {k: p for k, p in inspect.signature(kind).parameters.items() if k not in THEIRS and _is_number(p)}
    for key in options:
        if key not in known:
            raise unknown(f"option of flower.{name}", key, known)
    whole = {k: int(v) for k, v in options.items() if known[k].annotation in (int, "int") and float(v).is_integer()}
    if cut := [k for k in options if known[k].annotation in (int, "int") and k not in whole]:
        raise InputError(f"option '{cut[0]}' of flower.{name} must be a whole number, got {options[cut[0]]!r}")
    fixed = {k: v for k, v in OURS.items() if k in inspect.signature(kind).parameters}

    def make() -> Strategy:
        try:
            return kind(**fixed, **options | whole)
        except (TypeError, ValueError) as error:
            raise InputError(f"aggregator_options of 'flower.{name}': {str(error).partition('()')[2].strip() or error}") from None

    return make


def _is_number(parameter: inspect.Parameter) -> bool:
    """Whether a scenario can say it: its options are numbers."""
    if parameter.annotation is parameter.empty:
        return parameter.default is parameter.empty or type(parameter.default) in (int, float)
    return parameter.annotation in (int, float, "int", "float")


def _class(name: str) -> Callable[..., Strategy]:
    module, dot, kind = name.rpartition(".")
    if name in REFUSED:
        raise InputError(f"aggregator 'flower.{name}' cannot be used: {REFUSED[name]}")
    try:
        found = getattr(importlib.import_module(module) if dot else strategy, kind, None)
    except ImportError as error:
        raise InputError(f"aggregator 'flower.{name}': {error}") from None
    if not (isinstance(found, type) and issubclass(found, Strategy)) or inspect.isabstract(found):
        raise unknown("aggregator", f"flower.{name}", (f"flower.{n}" for n in strategy.__all__ if n not in {*REFUSED, *CONTRACTS}))
    return found


def _kept(theirs: Strategy) -> dict[str, State]:
    """What a strategy keeps between rounds: each attribute as tensors, copied."""
    found = {attribute: _arrays(attribute, value) for attribute, value in _attributes(theirs)}
    return {a: {n: torch.from_numpy(np.array(v)) for n, v in arrays.items()} for a, arrays in found.items() if arrays}


def _equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _unkept(theirs: Strategy) -> dict[str, str]:
    """What else it has, in words, to notice when it changes."""
    return {attribute: repr(value) for attribute, value in _attributes(theirs) if not _arrays(attribute, value)}


def _attributes(theirs: Strategy) -> list[tuple[str, Any]]:
    """``current_arrays`` is the round's own: ``configure_train`` sets it."""
    return [(name, value) for name, value in vars(theirs).items() if name != "current_arrays"]


def _arrays(attribute: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items()):
        return {f"{attribute}/{key}": v for key, v in value.items()}
    if isinstance(value, list) and all(isinstance(v, np.ndarray) for v in value):
        return {f"{attribute}[/{index:06d}": v for index, v in enumerate(value)}
    if isinstance(value, np.ndarray | int | float | np.number) and not isinstance(value, bool):
        return {attribute: np.asarray(value)}
    return {}


def _restore(theirs: Strategy, memory: State) -> None:
    collected: dict[str, dict[str, Any]] = {}
    for name, value in memory.items():
        head, slash, key = name.partition("/")
        if name == ROUND:
            continue
        if slash:
            collected.setdefault(head, {})[key] = value.numpy().copy()
        else:
            setattr(theirs, name, value.item() if value.ndim == 0 else value.numpy().copy())
    for head, values in collected.items():
        whole = [values[key] for key in sorted(values)] if head.endswith("[") else values
        setattr(theirs, head.removesuffix("["), whole)


def _reply(node: int, release: Release, shared: State) -> Message:
    """A user's release as a node of Flower's would send it: trained tensors, a weight, a loss."""
    trained = wire.encode_state(add(shared, release.update, 1 / release.weight))
    loss = release.metrics.get("loss", 0.0) / max(release.metrics.get("examples", 0.0), 1.0)
    content = RecordDict({"arrays": trained, "metrics": MetricRecord({"num-examples": release.weight, "train_loss": loss})})
    return Message(content, reply_to=Message(RecordDict(), node, MessageType.TRAIN))


class _Nodes:
    """As much of a grid as ``configure_train`` looks at."""

    def __init__(self, count: int) -> None:
        self.count = count

    def get_node_ids(self) -> list[int]:
        return list(range(1, self.count + 1))


@contextmanager
def _task() -> Iterator[None]:
    """Flower makes messages only inside a task of its own; elsewhere, be one for a moment."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    try:
        for name in names:
            if before[name] is None:
                setattr(TaskIdentity, name, 1)
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


@contextmanager
def _undrawn() -> Iterator[None]:
    """Flower samples from Python's global generator; leave that as it was."""
    before = random.getstate()
    try:
        yield
    finally:
        random.setstate(before)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Some of Flower's strategies collect garbage for every user's arrays; spare them the search of all that was there before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

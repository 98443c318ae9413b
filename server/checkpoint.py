"""A run's folder, and the one moment at which a round counts.

A round is written in this order: shared adapter and aggregator memory, rows, and last ``checkpoint.json``, which names them. A run that
is killed before that last rename resumes from the round before, as if the lost round had never begun.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from client.store import manifest
from client.store.manifest import Origin
from configs.errors import InputError
from configs.scenario import Scenario, load, scenario_hash, to_yaml
from strategies.files import read_state, write_state, write_text
from strategies.tree import State, partition

UNKNOWN = Origin()


@dataclass(frozen=True)
class Checkpoint:
    """What a run has after a round."""

    round: int
    shared: State
    memory: State  # the aggregator's
    rows: list[dict[str, Any]]  # one per round
    origin: Origin = UNKNOWN  # what the shared adapter makes sense on; its settings are the scenario's


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a run's folder to this process, and clear away what a killed one was writing. Raises `InputError` where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder} is in use by another process; wait for it, or choose another folder with --out") from None
    try:
        for left in folder.rglob(".*.tmp"):
            left.unlink()
        yield
    finally:
        lock.release()


def begin(folder: Path, scenario: Scenario) -> None:
    """Open a new run's folder and write its scenario. Refuses a folder that holds another run."""
    found = folder / "scenario.yaml"
    if found.exists() and scenario_hash(load(found)) != scenario_hash(scenario):
        raise InputError(f"{folder} holds a run of another scenario; choose another folder with --out, or remove it")
    write_text(found, to_yaml(scenario))


def refuse_without(folder: Path, ledgers: Iterable[str]) -> None:
    """Raise `InputError` where rounds count in ``folder``, and a ledger in it that says what they cost is gone."""
    for name in ledgers:
        if (folder / "checkpoint.json").exists() and not (folder / name).exists():
            raise InputError(
                f"{folder / name} is missing, which says what this run's rounds cost; put it back, or choose another folder"
            )


def commit(folder: Path, state: Checkpoint) -> None:
    """Make a round final."""
    name = f"shared-{state.round:06d}.safetensors"
    tensors = {f"shared/{k}": v for k, v in state.shared.items()} | {f"memory/{k}": v for k, v in state.memory.items()}
    write_state(folder / name, tensors)
    write_text(folder / "rounds.jsonl", "".join(json.dumps(row) + "\n" for row in state.rows))
    write_text(folder / "checkpoint.json", json.dumps({"round": state.round, "tensors": name, "origin": state.origin._asdict()}))
    for old in folder.glob("shared-*.safetensors"):
        if old.name != name:
            old.unlink()


def latest(folder: Path, here: Origin | None = None) -> Checkpoint | None:
    """The last committed round of a run, or None before the first.

    Raises `InputError` where its shared adapter was made on another base or tokenizer than ``here`` (None: not asked).
    """
    path = folder / "checkpoint.json"
    if not path.exists():
        return None
    try:
        head = json.loads(path.read_text())
        made = Origin(**head.get("origin", {}))
        tensors = read_state(folder / head["tensors"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be resumed from: {error}") from None
    shared, memory = partition(tensors, lambda name: name.startswith("shared/"))
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    found = Checkpoint(head["round"], _bare(shared), _bare(memory), [r for r in rows if r["round"] <= head["round"]], made)
    if here is not None:
        refuse_other(folder, found, here)
    return found


def last(folder: Path) -> Checkpoint:
    """The last committed round of a run. Raises `InputError` where there is none."""
    found = latest(folder)
    if found is None:
        raise InputError(f"{folder} has no finished round yet")
    return found


def refuse_other(folder: Path, found: Checkpoint, here: Origin) -> None:
    """Raise `InputError` where a run's shared adapter was made on another base or tokenizer than ``here``."""
    manifest.refuse(f"the shared adapter in {folder}", found.origin, here._replace(adapter=""))


def _bare(state: State) -> State:
    return {name.partition("/")[2]: value for name, value in state.items()}

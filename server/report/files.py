"""Read a run's folder, and write into it without ever leaving half a file.

Everything wrong with a folder is an `InputError` that names the file.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from configs.scenario import Scenario, load
from server.report import controls

_COUNTS = ("user", "seen", "train", "test")  # the columns of users.csv that are no metric
_ROUND = ("round", "users", "bytes_up", "bytes_down")  # what every round must say, as numbers


@dataclass(frozen=True)
class Users:
    """`users.csv` by column; U users in the file's order."""

    names: tuple[str, ...]
    seen: np.ndarray  # bool; False: never trained on
    train: np.ndarray  # training examples
    test: np.ndarray  # test examples
    values: dict[str, dict[str, np.ndarray]]  # row -> metric -> value per user; NaN: undefined; a diverged loss: inf


@dataclass(frozen=True)
class Run:
    """A finished run as its folder tells it."""

    directory: Path
    scenario: Scenario
    rounds: list[dict[str, Any]]
    users: Users
    timing: dict[str, Any]


def read(directory: str | Path) -> Run:
    """Read a finished run's folder."""
    directory = Path(directory)
    scenario = read_scenario(directory)
    return Run(directory, scenario, read_rounds(directory), read_users(directory), _read_timing(directory))


def validations(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, dict[str, dict[str, float]]]]:
    """The validation scores of rounds that have any, each with the round after which they were so."""
    found: list[tuple[int, dict[str, dict[str, float]]]] = []
    for row in rows:
        if before := row.get("validation_before"):
            found.append((row["round"] - 1, before))
        if after := row.get("validation"):
            found.append((row["round"], after))
    return found


def read_scenario(directory: str | Path) -> Scenario:
    """The resolved scenario that the run wrote when it started."""
    path = Path(directory) / "scenario.yaml"
    _text(path)
    try:
        return load(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_rounds(directory: str | Path) -> list[dict[str, Any]]:
    """One mapping per round, as the loop wrote it; a run that goes on may be read too."""
    path = Path(directory) / "rounds.jsonl"
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            row = _json(line, f"{path}, line {number}")
            missing = [key for key in _ROUND if not isinstance(row.get(key), int | float)]
            if missing:
                raise InputError(f"{path}, line {number}: '{missing[0]}' must be a number, got {row.get(missing[0])!r}")
            if not isinstance(row.get("dropped", {}), dict):
                raise InputError(f"{path}, line {number}: 'dropped' must be a count per reason")
            rows.append(row)
    return rows


def training_seconds(rows: Iterable[Mapping[str, Any]]) -> float:
    """Of rounds: seconds of training and aggregation."""
    return sum(row["seconds"].get(part, 0.0) for row in rows for part in ("train", "aggregate"))


def read_users(directory: str | Path) -> Users:
    """The table of users; raises `InputError` for a missing column, a cell that is no number, a user named twice."""
    path = Path(directory) / "users.csv"
    table = list(csv.reader(io.StringIO(_text(path), newline="")))
    header, lines = (table[0], [line for line in table[1:] if line]) if table else ([], [])
    for name in _COUNTS:
        if name not in header:
            raise InputError(f"{path} has no column '{name}'")
    for number, line in enumerate(lines, 1):
        if len(line) != len(header):
            raise InputError(f"{path}: user {number} has {len(line)} cells, the header {len(header)}")
    cells = {name: [line[at] for line in lines] for at, name in enumerate(header)}
    names = tuple(cells["user"])
    if len(set(names)) < len(names):
        raise InputError(f"{path} names user '{next(n for n in names if names.count(n) > 1)}' twice")
    numbers = {name: _numbers(path, name, cells[name]) for name in header if name not in ("user", "seen")}
    return Users(names, _flags(path, cells["seen"]), numbers["train"], numbers["test"], _by_row(numbers))


def write_text(path: Path, text: str) -> Path:
    """Write a whole file or none: a temporary name beside it, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _by_row(numbers: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Group ``<row>.<metric>`` columns by row; a row without any value is left out."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for column, values_U in numbers.items():
        row, dot, metric = column.rpartition(".")
        if dot and not np.isnan(values_U).all():
            found.setdefault(row, {})[metric] = values_U
    return {row: found[row] for row in controls.ordered(found) if "nll" in found[row]}


def _read_timing(directory: Path) -> dict[str, Any]:
    path = directory / "timing.json"
    timing = _json(_text(path), str(path))
    seconds = timing.get("seconds")
    if not isinstance(seconds, dict) or not all(isinstance(value, int | float) for value in seconds.values()):
        raise InputError(f"{path}: 'seconds' must hold seconds per part")
    return timing


def _text(path: Path) -> str:
    if not path.parent.is_dir():
        raise InputError(f"no run folder '{path.parent}'")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: not a run folder, or its run has not come so far") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} must hold one JSON object")
    return value


def _flags(path: Path, cells: list[str]) -> np.ndarray:
    known = {"true": True, "1": True, "false": False, "0": False}
    for cell in cells:
        if cell.strip().lower() not in known:
            raise InputError(f"{path}: column 'seen' must say True or False, got '{cell}'")
    return np.array([known[cell.strip().lower()] for cell in cells], bool)


def _numbers(path: Path, name: str, cells: list[str]) -> np.ndarray:
    """Empty cells are undefined (NaN); a loss written as nan has diverged and counts as infinitely bad."""
    values = []
    for cell in cells:
        try:
            value = float(cell) if cell.strip() else math.nan
        except ValueError:
            raise InputError(f"{path}: column '{name}' must hold numbers, got '{cell}'") from None
        values.append(math.inf if cell.strip() and math.isnan(value) and name.endswith(".nll") else value)
    return np.array(values, float)

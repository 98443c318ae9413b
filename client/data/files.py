"""A person's own data.

``data.path`` is a folder of ``<user>.jsonl``, one ``.jsonl``, ``.csv`` or ``.parquet`` file, or a folder that Hugging
Face ``datasets`` has saved.
"""

import csv
import json
import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from client.data.types import Example, Source
from configs.errors import InputError, nearest
from configs.scenario import Data

Rows = Iterator[tuple[str, int, dict[str, Any]]]  # (file, line or row, column -> value)

COLUMNS = {"text": ("", "text"), "answer": ("prompt", "answer"), "choice": ("prompt", "label")}  # prompt, answer
SUFFIXES = (".jsonl", ".csv", ".parquet")


def read(data: Data) -> dict[str, list[Example]]:
    """Return the users of the files at ``data.path``, with columns as ``data.fields`` names them.

    Every row is an example and a privacy unit of its own. Without ``data.fields.time`` the order of the file is the
    order in time. Raises `InputError` with the file and the line for whatever is missing, broken or empty.
    """
    users: dict[str, list[Example]] = {}
    for path, user in _parts(data):
        for file, number, row in _rows(path):
            where = f"'{file}' row {number}"
            name = user or _text(row, "user", data, where)
            users.setdefault(name, []).append(_example(row, data, where, number))
    if not users:
        raise InputError(f"data.path '{data.path}' holds no examples")
    return users


def _parts(data: Data) -> list[tuple[Path, str]]:
    """Return what is to be read, each with its user where the name of the file says it."""
    path = Path(data.path)
    if not data.path:
        raise InputError("data.path is empty: data.name 'files' needs a folder or a file")
    if not path.exists():
        known = (p.name for p in path.parent.glob("*") if p.is_dir() or p.suffix in SUFFIXES)
        raise InputError(f"data.path '{path}' does not exist{nearest(path.name, known)}")
    if not path.is_dir() or _is_saved(path):
        return [(path, "")]
    parts = [(file, file.stem) for file in sorted(path.glob("*.jsonl"))]
    if not parts:
        raise InputError(f"data.path '{path}' holds neither <user>.jsonl files nor a folder saved by 'datasets'")
    return parts


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists()


def _example(row: dict[str, Any], data: Data, where: str, number: int) -> Example:
    prompt, answer = COLUMNS[data.task]
    text = _text(row, answer, data, where)
    if answer == "label" and data.labels and text not in data.labels:
        raise InputError(f"{where}: label '{text}' is not among data.labels{nearest(text, data.labels)}")
    before = _text(row, prompt, data, where, empty=True) if prompt else ""
    return Example(before, text, _time(row, data, where) if data.fields.time else 0.0, str(number))


def _value(row: dict[str, Any], field: str, data: Data, where: str) -> Any:
    column = getattr(data.fields, field)
    if column not in row:
        raise InputError(f"{where} has no column '{column}' (data.fields.{field}){nearest(column, map(str, row))}")
    return row[column]


def _text(row: dict[str, Any], field: str, data: Data, where: str, empty: bool = False) -> str:
    value = _value(row, field, data, where)
    if not isinstance(value, str | int | float):
        raise InputError(f"{where}: '{getattr(data.fields, field)}' must be a text or a number, got {value!r}")
    if not empty and not str(value).strip():
        raise InputError(f"{where}: '{getattr(data.fields, field)}' is empty")
    return str(value)


def _time(row: dict[str, Any], data: Data, where: str) -> float:
    value = _value(row, "time", data, where)
    try:
        seconds = _seconds(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        rule = "must be a number or an ISO date like 2024-05-31"
        raise InputError(f"{where}: '{data.fields.time}' {rule}, got {value!r}")
    return seconds


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime):
        # a date without a zone is taken as UTC: the order must not depend on the machine
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value)


def _rows(path: Path) -> Rows:
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = _saved if path.is_dir() else readers.get(path.suffix)
    if reader is None:
        raise InputError(f"data.path '{path}' must be a folder or end in {', '.join(SUFFIXES)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is not UTF-8 text") from None


def _jsonl(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"'{path}' row {number} is not JSON: {error.msg}") from None
            if not isinstance(row, dict):
                raise InputError(f"'{path}' row {number} must be a JSON object, got {line.strip()[:40]}")
            yield str(path), number, row


def _csv(path: Path) -> Rows:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long document
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            yield from ((str(path), reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise InputError(f"'{path}' row {reader.line_num} is not CSV: {error}") from None


def _parquet(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from ((str(path), number, row) for number, row in enumerate(rows, 1))
    except pyarrow.ArrowException as error:
        raise InputError(f"'{path}' is not Parquet: {str(error).splitlines()[0]}") from None


def _saved(path: Path) -> Rows:
    try:
        from datasets import Dataset, load_from_disk
    except ImportError:
        raise InputError(f"data.path '{path}' needs the package 'datasets': pip install datasets") from None
    found = load_from_disk(str(path))
    if not isinstance(found, Dataset):
        raise InputError(f"data.path '{path}' holds several splits ({', '.join(map(str, found))}): add one to the path")
    yield from ((str(path), number, dict(row)) for number, row in enumerate(found, 1))


SOURCE = Source(read, "", (), "one row", "your own files: JSON Lines, CSV, Parquet or a saved Hugging Face dataset")

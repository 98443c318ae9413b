"""A run's folder that is made out of another: hidden until it is whole, and the same command goes on where one was cut off."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.errors import InputError
from strategies.files import write_text

NOTE = "making.json"  # in a folder that is being made: what it is to become
KEPT = ("checkpoint.json", "manifest.*")  # files that show that there is something to go on with: a round, or a user


def stage(out: Path) -> Path:
    """Where a folder lies until it is whole."""
    return out.with_name(f".{out.name}.making")


@contextmanager
def made(out: Path, said: Mapping[str, Any]) -> Iterator[Path]:
    """Make ``out`` in its `stage`, which ``said`` describes, and put it in its place at the end.

    What is refused leaves nothing. Raises `InputError` where another command was cut off there.
    """
    folder = stage(out)
    note = folder / NOTE
    if not note.exists():
        write_text(note, json.dumps(said, indent=1))
    elif (there := json.loads(note.read_text())) != said:
        differs = next((name for name in said if there.get(name) != said[name]), "command")
        raise InputError(f"{folder} holds what was cut off and had another {differs}; give that command again, or remove it")
    try:
        yield folder
    except InputError:
        if not any(found for name in KEPT for found in folder.rglob(name)):
            shutil.rmtree(folder)
        raise
    note.unlink()
    folder.replace(out)

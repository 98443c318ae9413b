"""A tiny world and a finished run in it, made once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.simulations.command import Said, call, write_world


@dataclass(frozen=True)
class World:
    """Where the tiny world lies, the settings that name it, and a run that has ended."""

    folder: Path
    settings: tuple[str, ...]
    run: Path
    said: Said  # by the run


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> World:
    """The world, with one run."""
    folder = tmp_path_factory.mktemp("world")
    settings = tuple(write_world(folder, tokenizer).split())
    said = call("run", "movielens", *settings, "--out", folder / "runs" / "tiny")
    return World(folder, settings, folder / "runs" / "tiny", said)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with nothing cached."""
    monkeypatch.setenv("HOMING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"

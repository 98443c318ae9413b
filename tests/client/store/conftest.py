"""A key, or none, and a node's home."""

import os
from pathlib import Path

import pytest

from client.store import keys
from client.store.keys import Key


@pytest.fixture(scope="session")
def made_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """A key in a file."""
    return keys.make(str(tmp_path_factory.mktemp("keys") / "first.key"))


@pytest.fixture(params=["clear", "sealed"])
def key(request: pytest.FixtureRequest, made_key: Key) -> Key | None:
    """None, and a key."""
    return made_key if request.param == "sealed" else None


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a node keeps everything."""
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the power, so none waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)

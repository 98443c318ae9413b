"""A small federation on disk, and a home for what its nodes and runs keep."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.task_identity import TaskIdentity

from tests.server.flower_world import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    """Overrides that name a model and users which have been written to disk."""
    return write_world(tmp_path_factory.mktemp("world"), tokenizer)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """$HOMING_HOME, of this test alone; afterwards this process is in no Flower task any more."""
    monkeypatch.setenv("HOMING_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for name in ("_task_id", "_run_id", "_node_id"):
        setattr(TaskIdentity, name, None)

"""An empty ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from strategies.privacy.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a ledger may begin."""
    return tmp_path / "ledger.db"


@pytest.fixture
def book(path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    with Ledger(path) as ledger:
        yield ledger

"""Nodes with two users."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.base import Base
from client.data.types import Dataset, Splits
from client.node import Node
from client.private import PrivateStore
from tests.client.federation import SCENARIO, Nodes, Texts


@pytest.fixture
def nodes(base: Base, texts: Texts, tmp_path: Path) -> Nodes:
    """A maker of nodes with two users, of five examples and of four; ``other``: other examples for the second of them."""
    made = iter(range(100))

    @contextmanager
    def make(name: str, other: int = 0, purse: Any = None, **changes: Any) -> Iterator[Node]:
        splits = {
            u: Splits(tuple(texts(i + other * i, 5 - i, length=8)), (), tuple(texts(i + 7, 3))) for i, u in enumerate(("ann", "bob"))
        }
        dataset = Dataset(splits, {}, "answer", (), (), "text")
        node = Node(replace(SCENARIO, scheme=name, **changes), base, dataset, PrivateStore(tmp_path / str(next(made))), purse)
        try:
            yield node
        finally:
            node.close()

    return make

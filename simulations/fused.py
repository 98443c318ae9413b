"""FusedRuntime: all users in this process, trained side by side, no messages."""

from collections.abc import Iterator, Sequence
from typing import Any

from client.node import Node
from strategies.base import Release, Task


class FusedRuntime:
    """A `Runtime` over one node that keeps everyone."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def users(self) -> Sequence[str]:
        """All users that may train, sorted."""
        return self.node.users()

    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        """Train them in fused passes; one release each."""
        return self.node.train(task, users)

    def evaluate(self, task: Task, part: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of all users; in a simulation the researcher sees them."""
        return self.node.evaluate(task, part, wanted)

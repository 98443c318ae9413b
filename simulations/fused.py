"""FusedRuntime: all users in this process, trained side by side, no messages.

What a message would do to a release is done to it all the same (`client.sending`), and what it would take is counted: the numbers in
the forms of `strategies.packing`, without names, headers and counters.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from client import sending
from client.node import Node
from server.sampling import dealt
from strategies import packing
from strategies.base import Release, Task, Traffic


class FusedRuntime:
    """A `Runtime` over one node that keeps everyone, and plays so many nodes as ``Wire.nodes`` says."""

    def __init__(self, node: Node) -> None:
        self.node, self.traffic = node, Traffic()
        self.nodes = 0 if node.scenario.privacy.secure else node.scenario.wire.nodes  # a sum under masks has nodes of its own
        node.alone = not (self.nodes and node.split.aggregator.linear)

    def users(self) -> Sequence[str]:
        """All users that may train, sorted."""
        return self.node.users()

    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        """Train them in fused passes; one release of each user, or of each node that is played and may send one sum."""
        played = dealt(self.users(), users, self.nodes) if self.nodes else {}
        self.traffic.down += packing.pack(task.shared).nbytes() * (len(played) or len(users))
        for release in self._scored(task, users) if self.node.alone else self._sums(task, played):
            self.traffic.up += packing.pack(release.update, task.shared).nbytes()
            yield release

    def _sums(self, task: Task, played: dict[str, list[str]]) -> Iterator[Release]:
        for kept in played.values():
            yield from sending.summed(self.node.scenario, task, self._scored(task, kept), kept)

    def _scored(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        return sending.scored(self.node, task, users, self.node.train(task, users))

    def evaluate(self, task: Task, part: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of all users; in a simulation the researcher sees them."""
        return self.node.evaluate(task, part, wanted)

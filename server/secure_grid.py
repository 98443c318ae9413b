"""Secure sums over Flower: four exchanges a round, with each node that keeps some of the round's users.

A node is a party under its id. One that fails, is silent, or answers what cannot be read has dropped out at that step, for this round.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from torch import Tensor

from client import secure_wire, wire
from client.secure import Call, Form
from client.secure_wire import ACTION, Step
from client.wire import Order
from configs.scenario import Scenario
from server.grid import GridRuntime, among, decoded
from server.secure import released
from server.unmasking import collect
from strategies.base import Release, Task
from strategies.privacy.joint import Plan


class SecureGridRuntime:
    """A `Runtime` over a Flower grid whose round loop sees one sum a round, and the server no node's own.

    ``plan``: of the noise, under guarantee U.
    """

    def __init__(self, inner: GridRuntime, scenario: Scenario, plan: Plan | None = None) -> None:
        self.inner, self.scenario, self.plan, self.traffic = inner, scenario, plan, inner.traffic

    def users(self) -> Sequence[str]:
        """All users of all nodes, sorted."""
        return self.inner.users()

    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        """Train the users where they are and yield the sum of what all nodes release."""
        self.inner.look()
        asked = {str(node): kept for node, kept in among(self.inner.homes(), users).items()}

        def summing(call: Call, how: Form) -> tuple[Tensor, tuple[str, ...]]:
            shared = wire.encode_shared(task.shared)
            orders = {me: Order(task, self.inner.run, tuple(kept), origin=self.inner.origin) for me, kept in asked.items()}
            first = {me: secure_wire.encode_begin(order, shared, call, me) for me, order in orders.items()}
            return collect(how.terms, self._exchange(task, f"{MessageType.TRAIN}.{ACTION}", first), go_on)

        def go_on(step: str, sent: Mapping[str, bytes]) -> Mapping[str, bytes]:
            said = {me: secure_wire.encode_step(Step(step, self.inner.run, me, message)) for me, message in sent.items()}
            return self._exchange(task, f"{MessageType.QUERY}.{ACTION}", said)

        return released(self.scenario, task, asked, self.plan, summing, self.inner.failed)

    def evaluate(self, task: Task, part: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of all users, as without a secure sum."""
        return self.inner.evaluate(task, part, wanted)

    def _exchange(self, task: Task, kind: str, contents: Mapping[str, RecordDict]) -> dict[str, bytes]:
        messages = [Message(content, int(me), kind, group_id=str(task.round)) for me, content in contents.items()]
        replies = self.inner.exchange(messages)
        found = decoded([int(me) for me in contents], replies, secure_wire.decode_answer, self.inner.failed)
        return {str(node): answer for node, answer in found.items()}

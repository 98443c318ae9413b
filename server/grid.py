"""GridRuntime: the nodes of a Flower federation behind the same `Runtime` that the round loop sees in one process.

A round is one message to each node that keeps some of its users. Answers are taken in the order of the nodes' first users, so
that the same federation adds up in the same order whatever ids Flower has drawn and whoever answers first.

Before each round the server looks who is there. A node that has left is not waited for; one that comes, or comes back under another id,
brings its users along from then on. A round that hears from too few users by its deadline counts for nothing and is asked for again.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from client import wire
from client.wire import Order
from configs.errors import InputError
from strategies.base import Release, Task, Traffic

T = TypeVar("T")
Homes = Mapping[int, Sequence[str]]  # node -> the users that it keeps; in the order in which answers are taken
log = logging.getLogger("flwr.homing")  # a child of Flower's logger: shows wherever Flower's own lines do
POLL = 0.5  # seconds between looks for nodes
TRIES = 3  # times that a round is asked for
GOES_ON = "nothing is lost, and the same command goes on with this round"


class GridRuntime:
    """A `Runtime` over a Flower grid.

    ``run`` names the folder of private adapters on the nodes. ``nodes``: how many must be there before the first round (0:
    as many as a node's partition says that there are, else those that are there). ``quorum``: the share of a round's users that have to
    be heard from; with 0 a round waits until the node of one of them is there, and whatever it then hears counts. ``origin``: hashes of
    the base model and the tokenizer without which a node is of no use.
    """

    def __init__(self, grid: Grid, run: str = "", nodes: int = 0, patience: float = 300.0, deadline: float = 3600.0,
                 quorum: float = 0.0, origin: tuple[str, ...] = ()) -> None:  # fmt: skip
        self.grid, self.run, self.nodes, self.quorum, self.origin = grid, run, nodes, quorum, origin
        self.patience = patience  # seconds to wait for nodes
        self.deadline = deadline  # seconds to wait for a round's answers
        self.failed: Counter[str] = Counter()  # answers that were none, by reason
        self.traffic = Traffic()
        self._kept: Mapping[int, wire.Kept] = {}  # by every node that has not been replaced
        self._there: set[int] = set()
        self._refused: set[int] = set()

    def kept(self) -> Mapping[int, wire.Kept]:
        """What each node has said about itself, those that are away included. Waits for the nodes the first time."""
        if not self._kept:
            self._kept = meet(self.grid, self.nodes, self.patience, self.deadline)
            self._there = set(self._kept)
        return self._kept

    def look(self) -> None:
        """See who has come and who has left since the last look."""
        known = self.kept()
        self._there = set(self.grid.get_node_ids())
        fresh = sorted(self._there - known.keys() - self._refused)
        said = introduced(self.grid, fresh, self.deadline, self.failed)
        self._refused |= set(fresh) - said.keys()
        self._kept = joined(known, self._there, said, self.failed)

    def homes(self) -> Homes:
        """Which node that is there keeps which users."""
        return {node: said.users for node, said in self.kept().items() if node in self._there}

    def lets(self) -> frozenset[str]:
        """What every node lets out beside releases: of counters and scores."""
        return frozenset.intersection(*(frozenset(said.lets) for said in self.kept().values()))

    def simulated(self) -> bool:
        """Whether any node is only played."""
        return any(said.simulated for said in self.kept().values())

    def users(self) -> Sequence[str]:
        """All users of all nodes, sorted; those of nodes that are away too."""
        return sorted(user for said in self.kept().values() for user in said.users)

    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        """Train the users where they are and yield what the nodes release. A node that fails is counted and left out.

        Raises `InputError` where a quorum does not come, or does not answer although it is asked `TRIES` times.
        """
        least = math.ceil(self.quorum * len(users))
        for _ in range(TRIES if users else 0):
            asked = self._gathered(task, users, max(1, least))
            found = answered(asked, task, self.exchange(orders(asked, task, self.run, self.origin)), self.failed)
            heard = sum(len(asked[node]) for node in found)
            if heard >= least:
                yield from (release for some in found.values() for release in some)
                return
            log.warning("round %d: nodes of %d of %d users answered; %d are needed", task.round, heard, len(users), least)
        if users:
            why = f" ({', '.join(self.failed)})" if self.failed else ""
            raise InputError(f"round {task.round} was asked for {TRIES} times and too few nodes answered{why}; {GOES_ON}")

    def _gathered(self, task: Task, users: Sequence[str], least: int) -> dict[int, list[str]]:
        """The nodes that keep some of these users, once enough of them are there."""
        until = time.monotonic() + self.patience
        while True:
            self.look()
            asked = among(self.homes(), users)
            if (there := sum(map(len, asked.values()))) >= least:
                return asked
            if time.monotonic() > until:
                waited = f"round {task.round}: waited {self.patience:g} s for nodes of {least} of its {len(users)} users"
                raise InputError(f"{waited}, and those of {there} are there; {GOES_ON}")
            time.sleep(POLL)

    def evaluate(self, task: Task, part: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of all users whose nodes are there, in the order of names, unseen ones last; none where a node lets no scores out."""
        if "scores" not in self.lets():
            return []
        self.look()
        messages = questions(self.homes(), task, self.run, part, wanted, self.origin)
        return rows(self.homes(), self.exchange(messages, scores=True), self.failed)

    def exchange(self, messages: Sequence[Message], scores: bool = False) -> list[Message]:
        """Send messages, wait for the answers, and count what all of them take."""
        down = sum(wire.size(message.content) for message in messages)
        replies = list(self.grid.send_and_receive(messages, timeout=self.deadline))
        up = sum(wire.size(reply.content) for reply in replies if not reply.has_error())
        if scores:
            self.traffic.scored += up + down
        else:
            self.traffic.up, self.traffic.down = self.traffic.up + up, self.traffic.down + down
        return replies


def meet(grid: Grid, nodes: int, patience: float, timeout: float) -> Mapping[int, wire.Kept]:
    """Ask every node for its users as it appears, until all are there. Returns the answers in the order of the nodes' first users.

    Flower's simulation registers nodes while the server is already running, so the first look may see only some of them.
    Raises `InputError` when too few come in time, when none can take part, or when two keep the same user.
    """
    kept: dict[int, wire.Kept] = {}
    seen: set[int] = set()
    failed: Counter[str] = Counter()
    until = time.monotonic() + patience
    while True:
        fresh = [node for node in grid.get_node_ids() if node not in seen]
        seen |= set(fresh)
        kept |= introduced(grid, fresh, timeout, failed)
        partitions = max((k.partitions for k in kept.values()), default=0)
        wanted = max(1, nodes, partitions)
        if len(seen) >= wanted and (not fresh or partitions):
            break
        if time.monotonic() > until:
            raise InputError(f"waited {patience:g} s for {wanted} nodes, and {len(seen)} came")
        time.sleep(POLL)
    if not kept:
        raise InputError(f"no node can take part: {next(iter(failed))}")
    return _settled(kept)


def introduced(grid: Grid, fresh: Sequence[int], timeout: float, failed: Counter[str]) -> dict[int, wire.Kept]:
    """What nodes say about themselves when they are asked for the first time."""
    messages = [Message(RecordDict(), node, MessageType.QUERY) for node in fresh]
    return decoded(fresh, grid.send_and_receive(messages, timeout=timeout), wire.decode_kept, failed) if fresh else {}


def _settled(kept: Mapping[int, wire.Kept]) -> Mapping[int, wire.Kept]:
    owner: dict[str, int] = {}
    for node, said in kept.items():
        for user in said.users:
            if user in owner:
                raise InputError(f"user '{user}' is kept by two nodes, {owner[user]} and {node}: users need names of their own")
            owner[user] = node
    if not owner:
        raise InputError(f"none of the {len(kept)} nodes keeps a user")
    return _ordered(kept)


def joined(known: Mapping[int, wire.Kept], there: Container[int], fresh: Mapping[int, wire.Kept],
           failed: Counter[str]) -> Mapping[int, wire.Kept]:  # fmt: skip
    """What is known once nodes have come. One that keeps users of a node that is away takes them over: it may be the same machine.

    Left out until the next look is one that keeps users of a node that is there, or one that is only played where others are not: its
    noise would be no secret.
    """
    found = dict(known)
    for node, said in sorted(fresh.items()):
        rivals = {other: kept for other, kept in found.items() if not set(kept.users).isdisjoint(said.users)}
        if said.simulated and not all(kept.simulated for kept in known.values()):
            _leave_out(node, "is only played, and others are not", failed)
        elif present := [other for other in rivals if other in there]:
            _leave_out(node, f"keeps users of node {present[0]}, which is there", failed)
        else:
            for other, kept in rivals.items():
                found[other] = replace(kept, users=tuple(user for user in kept.users if user not in said.users))
                if not found[other].users:
                    del found[other]
            found[node] = said
    return _ordered(found)


def _ordered(kept: Mapping[int, wire.Kept]) -> Mapping[int, wire.Kept]:
    order = sorted(kept, key=lambda node: (not kept[node].users, min(kept[node].users, default=""), node))
    return {node: kept[node] for node in order}


def among(homes: Homes, users: Iterable[str]) -> dict[int, list[str]]:
    """The nodes that keep some of these users, and which."""
    wanted = set(users)
    found = {node: [user for user in kept if user in wanted] for node, kept in homes.items()}
    return {node: some for node, some in found.items() if some}


def orders(asked: Homes, task: Task, run: str, origin: tuple[str, ...] = ()) -> list[Message]:
    """One message to each node: train these users. All carry the same encoded adapter."""
    shared, group = wire.encode_shared(task.shared), str(task.round)
    wanted = {node: Order(task, run, tuple(users), origin=origin) for node, users in asked.items()}
    return [Message(wire.encode_order(order, shared), node, MessageType.TRAIN, group_id=group) for node, order in wanted.items()]


def questions(homes: Homes, task: Task, run: str, part: str, wanted: Sequence[str], origin: tuple[str, ...] = ()) -> list[Message]:
    """One message to each node: score this split of your users, with these rows."""
    content = wire.encode_order(Order(task, run, (), part, tuple(wanted), origin), wire.encode_shared(task.shared))
    return [Message(content, node, MessageType.EVALUATE, group_id=str(task.round)) for node in homes]


def answered(asked: Homes, task: Task, replies: Iterable[Message], failed: Counter[str]) -> dict[int, list[Release]]:
    """Read the answers of a round. One that cannot be read, or speaks for more users than it was asked for, is left out."""
    found = decoded(list(asked), replies, lambda content: wire.decode_releases(content, task.shared), failed)
    for node, some in list(found.items()):
        users = sum(release.users for release in some)
        if users > len(asked[node]):
            _leave_out(node, f"speaks for {users} users and was asked for {len(asked[node])}", failed)
            del found[node]
        elif users < len(asked[node]):
            log.warning("node %d: releases of %d of %d users", node, users, len(asked[node]))
    return found


def releases(asked: Homes, task: Task, replies: Iterable[Message], failed: Counter[str]) -> Iterator[Release]:
    """What `answered` reads, one after the other."""
    return (release for some in answered(asked, task, replies, failed).values() for release in some)


def rows(homes: Homes, replies: Iterable[Message], failed: Counter[str]) -> list[dict[str, Any]]:
    """Read the rows of an evaluation, in the order of users."""
    found = [row for some in decoded(list(homes), replies, wire.decode_rows, failed).values() for row in some]
    return sorted(found, key=lambda row: (not row["seen"], row["user"]))


def decoded(nodes: Sequence[int], replies: Iterable[Message], decode: Callable[[RecordDict], T], failed: Counter[str]) -> dict[int, T]:
    """What came back, in the order of ``nodes``; errors, silence and what cannot be read are counted in ``failed`` and logged."""
    answers = {reply.metadata.src_node_id: reply for reply in replies}
    found: dict[int, T] = {}
    for node in nodes:
        if node not in answers:
            _leave_out(node, "no answer in time", failed)
        elif answers[node].has_error():
            _leave_out(node, answers[node].error.reason or "an error", failed)
        else:
            try:
                found[node] = decode(answers[node].content)
            except Exception as error:  # whatever a node sends must not end the run
                _leave_out(node, f"unreadable: {error}", failed)
    return found


def _leave_out(node: int, reason: str, failed: Counter[str]) -> None:
    failed[reason] += 1
    log.warning("node %d is left out: %s", node, reason)

"""A small federation on disk, and a Flower grid in this process: the real `ClientApp` on real messages, through their wire form."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto  # type: ignore[attr-defined]
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.answers import app
from client.node import Node, open_node
from configs.scenario import Scenario, load
from server import aggregation, rounds
from server.checkpoint import Checkpoint
from simulations.training import runtime, spending
from strategies.files import read_state
from strategies.tree import State
from tests.conftest import write_files

USERS, NODES, RUN = 7, 3, 77
KEPT = [{"partition-id": index, "num-partitions": NODES} for index in range(NODES)]
PLAYED = [{**said, "noise": "seed"} for said in KEPT]  # nodes of a simulation
BASE = (
    "data.name=files data.task=choice data.min_examples=6 data.max_tokens=16 data.train=0.6 "
    "data.validation=0.2 data.unseen_users=2 rounds=3 evaluate_every=2 engine.device=cpu engine.threads=1 "
    "shared.rank=2 shared.layers=2 private.rank=2 private.layers=2 shared_training.batch=3 private_training.batch=3 "
    "shared_training.lr=0.01 private_training.lr=0.01 scheme=dual"
)  # fmt: skip


def write_world(folder: Path, tokenizer: Any) -> str:
    """Write a model and users of different sizes; returns the overrides that name them."""
    return f"{BASE} {write_files(folder, tokenizer, USERS + 2)}"


def scenario_of(overrides: str) -> Scenario:
    return load("movielens", overrides.split())


class LocalGrid(Grid):
    """Nodes of `client.answers` in this process. What a message holds passes through Flower's own serialization, both ways."""

    def __init__(
        self, overrides: str, kept: Iterable[Mapping[str, Any]] = tuple(KEPT), run_id: int = RUN, client: ClientApp = app
    ) -> None:
        self.client = client
        config = {"scenario": "movielens", "overrides": overrides, "out": "", "nodes": 0}
        self._run = Run.create_empty(run_id)
        self.contexts = {
            (1000003 * index) % 977 + 1: Context(run_id, (1000003 * index) % 977 + 1, dict(said), RecordDict(), config)
            for index, said in enumerate(kept, 1)
        }
        self.sent: list[tuple[Message, Message]] = []  # every message with its reply
        self.broken: set[int] = set()  # nodes that raise in training
        self.silent: set[int] = set()  # nodes that never answer there
        self.away: set[int] = set()  # nodes that have left
        self.seen = itertools.count(len(self.contexts))  # how many nodes are there at each look
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, 1, 1

    @property
    def run(self) -> Run:
        return self._run

    def set_run(self, run: Run) -> None:
        self._run = run

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return [node for node in list(self.contexts)[: next(self.seen)] if node not in self.away]

    def join(self, node: int, said: Mapping[str, Any]) -> None:
        """A node that comes later."""
        (first, *_), self.seen = self.contexts.values(), itertools.count(len(self.contexts) + 1)
        self.contexts[node] = Context(first.run_id, node, dict(said), RecordDict(), first.run_config)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:  # noqa: ARG002 - the interface
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.content = through(message.content)
            trains = message.metadata.message_type == "train"
            if trains and node in self.silent:
                continue
            try:
                if trains and node in self.broken:
                    raise RuntimeError("no more memory")
                reply = self.client(message, self.contexts[node])
                reply.content = through(reply.content)
            except Exception as error:  # as Flower answers for a client that raised
                reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
            self.sent.append((message, reply))
            replies.append(reply)
        return replies[::-1]  # Flower promises no order


def through(content: RecordDict) -> RecordDict:
    """What arrives at the other end: Flower's own serialization, and back."""
    return recorddict_from_proto(Proto.FromString(recorddict_to_proto(content).SerializeToString()))


def fused(scenario: Scenario, folder: Path) -> tuple[Checkpoint, Node]:
    """The same scenario in one process without messages; the node is still open."""
    node = open_node(scenario, folder / "private")
    folder.mkdir(parents=True)
    with spending(node, folder) as joint:
        start = node.split.shared_start()
        return rounds.run(scenario, runtime(node, joint), aggregation.build(scenario), start, folder, joint=joint), node


def private(folder: Path) -> dict[str, State]:
    """All private states under a folder, by user and round, whatever node they lie on."""
    return {f"{path.parent.name}/{path.name}": read_state(path) for path in folder.rglob("0*.safetensors")}


def distance(a: State, b: State) -> float:
    """The largest difference between two states with equal names."""
    assert a.keys() == b.keys()
    return max((float((a[name] - b[name]).abs().max()) for name in a), default=0.0)


def shift(a: State, b: State) -> float:
    """How far two states lie apart at most: what a tolerance must be small against."""
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def moved(state: State) -> bool:
    return all(bool(torch.any(value != 0)) for value in state.values())

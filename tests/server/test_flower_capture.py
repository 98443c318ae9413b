"""What a real SuperNode sends over its socket, byte by byte, while a real run trains users under guarantee E.

The app is this project with two files more: a server that gives one order twice, and a client that, from the second time on, puts every
private tensor to NaN after local training. Its noise is the same both times, so the same must leave.
"""

import ast
import json
import math
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch

from client import base as bases
from client.split import split
from simulations import flower_ray
from simulations.parity import ROOT
from strategies.files import read_state, write_state
from strategies.privacy.ledger import LEDGER, Ledger
from strategies.tree import State
from tests.server.flower_world import USERS, private, scenario_of

MAGIC = b"\x93NUMPY"  # how an array begins
CLIENT = """
import itertools, torch
from strategies.privacy import noise as noises
from client import repeats
from client.app import app as real
from client.private import PrivateStore
from configs.home import home
from strategies.privacy.noise import keyed

second, draws, save = (home() / "ledger.sqlite").exists(), itertools.count(), PrivateStore.save_parts

def spoils(self, user, round_, parts, made):
    save(self, user, round_, parts, made)
    for value in [v for state in parts.values() for v in state.values()] if second else ():
        value.fill_(torch.nan)
    if second:
        (home() / f"spoilt-{user}").touch()

repeats.known = lambda *_: None  # the second order is the first, and is to be trained again
PrivateStore.save_parts, noises.entropic = spoils, lambda: keyed("the system's", next(draws))
app = real
"""
SERVER = """
import json
from pathlib import Path
from flwr.serverapp import ServerApp
from server.grid import GridRuntime
from strategies.base import Task
from configs.home import home
from strategies.files import read_state, write_state, write_text

app = ServerApp()

@app.main()
def main(grid, context):
    runtime = GridRuntime(grid, "x", 1)
    task = Task(1, read_state(Path(context.run_config["out"])), participations=2)
    for time in ("first", "second"):
        (release,) = runtime.train(task, runtime.users())
        write_state(home() / f"{time}.safetensors", release.update)
        write_text(home() / f"{time}.json", json.dumps([release.weight, release.users, release.metrics]))
"""


class Caught(NamedTuple):
    """What the run left."""

    sent: bytes  # by the SuperNode, connection by connection
    server: Path
    node: Path
    start: State
    texts: list[str]  # of the users


class Tap:
    """A proxy in front of the SuperLink that keeps what a node sends."""

    def __init__(self) -> None:
        self.listener, self.port = socket.create_server(("127.0.0.1", 0)), 0
        self.streams: list[bytearray] = []
        self.threads: list[threading.Thread] = []
        self._start(self._serve)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def close(self) -> None:
        """Stop listening, and wait until nobody speaks any more."""
        self.listener.shutdown(socket.SHUT_RDWR)
        for thread in list(self.threads):
            thread.join(10)
        self.listener.close()

    def _start(self, work: Any, *args: Any) -> None:
        self.threads.append(threading.Thread(target=work, args=args, daemon=True))
        self.threads[-1].start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                node, _ = self.listener.accept()
                try:
                    link = socket.create_connection(("127.0.0.1", self.port))
                except OSError:  # the SuperLink is not there yet, and the node will try again
                    node.close()
                    continue
                self.streams.append(stream := bytearray())
                self._start(pump, node, link, stream)
                self._start(pump, link, node, bytearray())


def pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            kept += data
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
    source.close()  # the other direction closes the other one


@pytest.fixture(scope="module")
def caught(world: str, tmp_path_factory: pytest.TempPathFactory) -> Caught:
    """One run over a SuperLink and a SuperNode, with the tap between them."""
    folder = tmp_path_factory.mktemp("caught")
    overrides = f"{world} privacy=example shared_training.batch=99 private_training.batch=99"
    scenario = scenario_of(overrides)
    start = split(scenario, bases.load(scenario.model, "cpu")).shared_start()
    write_state(folder / "start.safetensors", start)
    app = folder / "app"
    for name in ("configs", "strategies", "client", "server", "simulations"):
        shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    (app / "client" / "taint.py").write_text(CLIENT)
    (app / "server" / "taint.py").write_text(SERVER)
    said = (ROOT / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(
        said.replace('"server.app:app"', '"server.taint:app"').replace('"client.app:app"', '"client.taint:app"')
    )
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, app / name)
    tap, real = Tap(), subprocess.Popen

    def tapped(command: list[str], *args: Any, **rest: Any) -> Any:
        if command[0].endswith("flower-superlink"):
            tap.port = int(command[command.index("--port") + 1])
        if command[0].endswith("flower-supernode"):
            command[command.index("--superlink") + 1] = tap.address
        return real(command, *args, **rest)

    config = {"scenario": "movielens", "overrides": overrides, "out": str(folder / "start.safetensors")}
    with pytest.MonkeyPatch.context() as patch, closing(tap), flower_ray.flower_home(folder) as env:
        patch.setattr(flower_ray.subprocess, "Popen", tapped)
        env["HOMING_HOME"] = str(folder / "server")
        done = flower_ray.deploy(app, env, [folder / "node"], config)
        log = next(folder.glob("flwr-*/daemons.log")).read_text()
    assert (folder / "server" / "second.json").is_file(), done.said[-3000:] + log[-3000:]
    texts = [json.loads(line)["prompt"] for path in Path(scenario.data.path).glob("*.jsonl") for line in path.read_text().splitlines()]
    return Caught(b"\n".join(map(bytes, tap.streams)), folder / "server", folder / "node", start, texts)


def arrays(sent: bytes) -> Iterator[bytes]:
    """The numbers of every tensor in a stream, in order: those of a record are one array of bytes."""
    at = sent.find(MAGIC)
    while at >= 0:
        begin = at + 10 + int.from_bytes(sent[at + 8 : at + 10], "little")
        head = ast.literal_eval(sent[at + 10 : begin].decode())
        assert head["descr"] == "|u1"
        end = begin + math.prod(head["shape"])
        yield from (value.numpy().tobytes() for value in safetensors.torch.load(sent[begin:end]).values())
        at = sent.find(MAGIC, end)


def test_the_tap_hears_what_the_server_gets(caught: Caught) -> None:
    update = read_state(caught.server / "first.safetensors")
    assert update.keys() == caught.start.keys()
    heard = set(arrays(caught.sent))
    assert all(value.numpy().tobytes() in heard and bool(value.any()) for value in update.values())
    assert b"u3" in caught.sent  # that a user is there is no secret of the protocol


def test_private_tensors_that_are_no_number_after_training_change_no_byte_that_carries_a_number(caught: Caught) -> None:
    assert len(list(caught.node.glob("spoilt-*"))) == USERS
    first, second = (read_state(caught.server / f"{time}.safetensors") for time in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) and bool(first[name].isfinite().all()) for name in first)
    assert (caught.server / "first.json").read_text() == (caught.server / "second.json").read_text()
    heard = list(arrays(caught.sent))
    assert set(heard) == {value.numpy().tobytes() for value in first.values()} and len(heard) >= len(first)


def test_no_private_tensor_no_name_of_one_and_no_text_is_in_what_was_sent(caught: Caught) -> None:
    states = private(caught.node)
    assert len(states) == USERS and len(caught.sent) > 10_000
    for state in states.values():
        for name, value in state.items():
            assert bool(value.isfinite().all()) and value.numpy().tobytes() not in caught.sent
            assert value.half().numpy().tobytes() not in caught.sent and name.encode() not in caught.sent
    assert b"private/" not in caught.sent
    assert len(caught.texts) > 40 and not [text for text in caught.texts if len(text) > 8 and text.encode() in caught.sent]
    assert b"tokens" not in caught.sent and b"seconds" not in caught.sent


def test_both_times_are_booked_in_the_nodes_home(caught: Caught) -> None:
    with Ledger(caught.node / LEDGER) as ledger:
        assert ledger.runs() == ["x"] and len(ledger.users()) == USERS
        assert all(sum(e.steps for e in history) == 4 for history in ledger.histories().values())  # twice one step of each part
    assert not list(caught.server.rglob(LEDGER))

"""A trainer that stays beside a SuperNode answers as a process of its own would, for its owner only; without it rounds go on."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import answers, resident
from client import app as thin
from configs.errors import InputError
from server import app as server_app
from tests.server.flower_world import RUN, LocalGrid, private, scenario_of

pytestmark = pytest.mark.usefixtures("home")
ROOT = Path(__file__).resolve().parents[2]


def message_to(node: int = 3) -> tuple[Message, Context]:
    """A question, and what a node's process knows."""
    return Message(RecordDict(), node, "query"), Context(RUN, node, {"users": "u0"}, RecordDict(), {"scenario": "x"})


@pytest.fixture
def asked(home: Path) -> Iterator[list[Context]]:
    """A trainer in a thread that answers by leaving the contexts that it saw here; a node called 13 makes it fail, 66 ends it."""
    seen: list[Context] = []
    LocalGrid("")  # messages need a task to be made in

    def answer(message: Message, context: Context) -> Message:
        seen.append(context)
        if context.node_id == 13:
            raise InputError("no node is called 13")
        if context.node_id == 66:
            raise SystemExit
        return Message(RecordDict(), reply_to=message)

    def serve() -> None:
        with pytest.raises(SystemExit):
            resident.serve(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    appears(home / resident.SOCKET)
    yield seen
    if thread.is_alive():
        with pytest.raises(resident.TrainerError, match="ended before it answered"):
            resident.ask(*message_to(66))
    thread.join(10)
    assert not thread.is_alive()


def appears(path: Path, patience: float = 60.0) -> None:
    until = time.monotonic() + patience
    while not path.exists():
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.02)


def test_a_process_that_only_passes_messages_on_imports_no_torch() -> None:
    code = "import sys; import client.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_app_has_the_answers_of_a_node_and_no_others() -> None:
    assert thin.app._registered_funcs.keys() == answers.app._registered_funcs.keys() != set()  # type: ignore[attr-defined]


def test_a_trainer_sees_what_the_process_knows_and_its_answer_is_a_reply(asked: list[Context]) -> None:
    message, context = message_to()
    reply = resident.ask(message, context)
    assert reply is not None and reply.metadata.dst_node_id == message.metadata.src_node_id
    assert reply.metadata.reply_to_message_id == message.metadata.message_id and not reply.has_error()
    (seen,) = asked
    assert (seen.run_id, seen.node_id, seen.node_config, seen.run_config) == (RUN, 3, {"users": "u0"}, {"scenario": "x"})


def test_what_goes_wrong_is_told_and_the_trainer_goes_on(asked: list[Context], home: Path) -> None:
    with pytest.raises(resident.TrainerError, match="InputError: no node is called 13"):
        resident.ask(*message_to(13))
    with Client(str(home / resident.SOCKET), "AF_UNIX") as caller:  # one that leaves in between
        caller.send_bytes(b"{}")
    with Client(str(home / resident.SOCKET), "AF_UNIX") as caller:
        caller.send_bytes(b'{"protocol": 0}')
        caller.send_bytes(b"")
        assert caller.recv_bytes() == resident.ERROR and b"different versions" in caller.recv_bytes()
    with Client(str(home / resident.SOCKET), "AF_UNIX") as caller:
        caller.send_bytes(b"\xff")
        caller.send_bytes(b"\xff")
        assert caller.recv_bytes() == resident.ERROR
    assert resident.ask(*message_to()) is not None and len(asked) == 2


def test_the_socket_is_its_owners_alone_and_a_home_has_one_trainer(asked: list[Context], home: Path) -> None:
    assert stat.S_IMODE((home / resident.SOCKET).stat().st_mode) == 0o600
    with pytest.raises(InputError, match="another trainer is at work in"):
        resident.serve(answers.app)
    assert resident.ask(*message_to()) is not None and asked


def test_a_home_whose_name_is_too_long_for_a_socket_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"HOMING_HOME is too long"):
        resident.serve(answers.app, tmp_path / ("x" * 100))
    assert not list(tmp_path.iterdir())


def test_where_no_trainer_answers_the_process_does_it_itself(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ClientApp()
    own.query()(lambda message, context: Message(RecordDict(), reply_to=message))  # noqa: ARG005 - what Flower calls it with
    monkeypatch.setattr(answers, "app", own)
    LocalGrid("")
    assert thin.app(*message_to()).metadata.message_type == "query"
    home.mkdir()
    with closing(socket.socket(socket.AF_UNIX)) as killed:  # which leaves the file
        killed.bind(str(home / resident.SOCKET))
    assert (home / resident.SOCKET).exists() and resident.ask(*message_to()) is None
    assert not thin.app(*message_to()).has_error()


def test_a_real_trainer_gives_what_processes_of_their_own_give(
    world: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(folder: Path, client: Any) -> Any:
        monkeypatch.setenv("HOMING_HOME", str(folder))
        server_app.run(scenario_of(overrides), LocalGrid(overrides, client=client), folder / "runs" / "x")
        found = server_app.checkpoint.latest(folder / "runs" / "x")
        assert found is not None and found.round == 3
        return found.shared

    overrides = f"{world} rounds=2 evaluate_every=0 personalize=1"
    alone, home = ran(tmp_path / "alone", answers.app), tmp_path / "kept"
    env = {**os.environ, "HOMING_HOME": str(home)}
    with (tmp_path / "log").open("wb") as log:
        trainer = subprocess.Popen([sys.executable, "-m", "client.resident"], cwd=ROOT, env=env, stderr=log)
    try:
        appears(home / resident.SOCKET)
        monkeypatch.setattr(answers, "app", None)  # whoever would answer by itself cannot
        shared = ran(home, thin.app)
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(60) == 0 and not (home / resident.SOCKET).exists()
    finally:
        trainer.kill()
        trainer.wait(10)
    assert all(torch.equal(value, shared[name]) for name, value in alone.items())
    mine, theirs = private(tmp_path / "alone"), private(home)
    assert mine.keys() == theirs.keys() != set()
    assert all(torch.equal(v, theirs[user][n]) for user, state in mine.items() for n, v in state.items())

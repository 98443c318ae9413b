"""An adapter of 200 MB travels to a node and its update comes back, in the pieces in which Flower carries a message.

It takes gigabytes: `HOMING_BIG=200 python -m pytest tests/server/test_wire_big.py -s` runs it and prints what it took, and `make test`
does not.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from client import sending, wire
from client.outgoing import Door
from configs.scenario import Scenario
from configs.wire import Wire
from server.grid import GridRuntime
from strategies.base import Release, Task
from strategies.tree import State, generator
from tests.server import flower_world
from tests.server.flower_world import LocalGrid

PIECE = 5 * 2**20  # bytes of a tensor that Flower carries in one object
KINDS = ("none", "bf16", "int8", "topk")


def carried(pieces: list[tuple[int, int]]) -> Callable[[RecordDict], RecordDict]:
    """What arrives at the other end once Flower has taken a message to pieces and put it together; notes how many and the largest."""

    def through(content: RecordDict) -> RecordDict:
        found = {name: each.deflate() for name, each in get_all_nested_objects(content).items()}
        pieces.append((len(found), max(map(len, found.values()))))
        return inflate_object_from_contents(content.object_id, found)  # type: ignore[return-value]

    return through


def node(scenario: Scenario, adds: State) -> ClientApp:
    """A node of one user that trains nothing: its update is the same numbers every time."""
    app, door = ClientApp(), Door(tells=True)

    @app.query()
    def query(message: Message, context: Context) -> Message:  # noqa: ARG001 - what Flower calls it with
        return door.reply(message, wire.encode_kept(wire.Kept(("ann",))), {})

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001
        order = wire.decode_order(message.content)
        release, _ = sending.thinned(scenario, None, order.task, "ann", Release(adds, 1.0), {})
        release = sending.pressed(scenario, order.task, release, "ann")
        return door.reply(message, wire.encode_releases([release], order.task.shared), order.task.shared)

    return app


def resident() -> int:
    """The most memory that this process has had since `forget`, in MiB."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.timeout(900)
@pytest.mark.skipif("HOMING_BIG" not in os.environ, reason="gigabytes")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("home")
def test_an_adapter_of_many_megabytes_travels_whole_and_in_pieces(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mega = int(os.environ["HOMING_BIG"])
    adds = {f"m{i}.lora_A.weight": torch.randn(mega * 2**20 // 32, 1, generator=generator(i)) for i in range(8)}
    scenario = Scenario(wire=Wire(kind=kind, keep=0.01))
    pieces: list[tuple[int, int]] = []
    monkeypatch.setattr(flower_world, "through", carried(pieces))
    runtime = GridRuntime(LocalGrid("", [{}], client=node(scenario, adds)), "x")
    runtime.users()
    forget()
    before, began = resident(), time.perf_counter()
    (release,) = runtime.train(Task(1, adds), ["ann"])
    seconds, peak = time.perf_counter() - began, resident()
    *_, (down, large), (up, _) = pieces
    sys.stdout.write(
        f"\n{kind}: {runtime.traffic.down / 2**20:.0f} MiB down in {down} objects, {runtime.traffic.up / 2**20:.1f} MiB up in {up}, "
        f"{seconds:.1f} s, {peak - before} MiB of memory at most\n"
    )
    assert large <= PIECE + 4096 and down >= mega * 2**20 // PIECE
    assert release.update.keys() == adds.keys() and runtime.traffic.down >= mega * 2**20
    assert {"none": 1, "bf16": 1.9, "int8": 3.9, "topk": 60}[kind] * runtime.traffic.up <= 1.001 * runtime.traffic.down
    if kind == "none":
        assert all(torch.equal(release.update[n], v) for n, v in adds.items())

"""What a node was given last of a run, the shared adapter and the scenario, kept so that its users' models can be used where they are.

The server had all of it: it says nothing of anybody that a server did not know. Played nodes keep nothing.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from client.node import Node
from client.private import folder_name
from client.store import disk, places
from client.store.manifest import Origin
from configs import reading
from configs.errors import InputError
from configs.scenario import Scenario, build, to_yaml
from strategies.base import Task
from strategies.files import read_state, whole
from strategies.tree import State

FILE = "shared.safetensors"
log = logging.getLogger("flwr.homing")


@dataclass(frozen=True)
class Given:
    """The shared adapter of a run."""

    scenario: Scenario  # with this machine's paths and device
    round: int  # in which it was given
    shared: State  # as it travels
    origin: Origin  # what it makes sense on


def keep(home: Path, run: str, node: Node, task: Task) -> None:
    """Keep it in the place of the run's last one. Where that fails users are served by the one before, and nothing else is lost."""
    folder = home / places.USE / folder_name(run)
    here = node.origin._replace(adapter="")  # how a shared adapter is laid out the scenario says
    said = {"scenario": to_yaml(node.scenario), "round": str(task.round), "origin": json.dumps(here._asdict())}
    try:
        disk.make(folder)
        disk.write(folder / FILE, safetensors.torch.save(whole(task.shared), said), flush=False)
    except OSError as error:
        log.warning("the shared adapter is not kept for use at home: %s", error)


def read(folder: Path) -> Given:
    """What lies in one run's folder. Raises `InputError` where it is damaged, or of another program."""
    path = folder / FILE
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata()
        scenario, here = build(reading.tree(path, said["scenario"])), Origin(**json.loads(said["origin"]))
        return Given(scenario, int(said["round"]), read_state(path), here)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); the next round that this node trains in makes it anew") from None

"""A server and its nodes on this machine, each on a host of its own, behind nginx with TLS and keys."""

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from client.private import folder_name
from client.store import keys as store_keys
from configs.errors import InputError
from server.app import run_of
from simulations.deploy import files, keys, machines, members, supernode
from simulations.deploy.files import Member, Server
from simulations.deploy.hosts import Hosts
from simulations.deploy.keeper import Command, Keeper
from simulations.flower_ray import free_ports

NODES = 3
SEALED = "store.key"  # of the last node: the others keep private adapters in the clear
DISK = "512m"  # of a node's own file system, where one can be mounted


@dataclass
class Federation:
    """A server and its nodes, running."""

    server: Server
    nodes: list[Member]
    keepers: list[Keeper]  # the server's, then the nodes'
    hosts: Hosts
    place: Path = Path()  # the folder of the run that goes on

    def key(self, node: Member) -> str:
        """What a node's store is sealed with, or nothing."""
        return str(node.folder / node.store_key) if node.store_key else ""

    def store(self, node: Member) -> Path:
        """What a node keeps of the users of the run that goes on. Raises `InputError` before there is anything."""
        if not (self.place / "flower.json").exists():
            raise InputError("the run has not begun")
        return node.home / "nodes" / folder_name(run_of(self.place, 0))

    def kill(self, keeper: int, name: str) -> None:
        """Kill -9 what is kept running."""
        self.keepers[keeper].running[name].kill()

    def started(self, name: str) -> Iterator[psutil.Process]:
        """The processes of this name that Flower has started for a task, on all machines."""
        homes = {str(self.server.home), *(str(node.home) for node in self.nodes)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if name in " ".join(process.cmdline()) and process.environ().get("HOMING_HOME") in homes:
                    yield process

    def replace(self, keeper: int, command: Command) -> None:
        """Run another command in one's place."""
        kept = self.keepers[keeper]
        kept.commands[command.name] = command
        kept.running[command.name].kill()


@contextmanager
def federation(folder: Path, where: Hosts) -> Iterator[Federation]:
    """A server and `NODES` nodes, all let in; ended afterwards."""
    link, port, *ports = free_ports(2 + NODES)
    lab = folder / "lab"
    lab.mkdir()
    keys.authority(lab)
    keys.server(lab, [where.address])
    files.write(lab / "server.yaml", Server(where.address, port, link))
    server, code = files.server(lab), (supernode.digest(machines.ROOT),)
    with ExitStack() as stack:
        kept = [stack.enter_context(Keeper(machines.of_server(server), server.home / "logs"))]
        stack.enter_context(_written(server.home / "logs" / "keeper.log"))
        stop = stack.enter_context(_looking(kept))
        nodes = []
        for index in range(NODES):
            sealed = SEALED if index == NODES - 1 else ""
            place = members.add(server, f"n{index}", partition=f"{index}/{NODES}", port=ports[index], bundles=code, store_key=sealed)
            if sealed:
                store_keys.make(str(place / sealed))
            if where.apart:
                stack.enter_context(_disk(files.member(place).home))
            patiently(lambda index=index: members.register(server, f"n{index}"))
            nodes.append(files.member(place))
            commands = [replace(c, words=[*where.on(f"n{index}"), *c.words]) for c in machines.of_node(nodes[-1])]
            kept.append(stack.enter_context(Keeper(commands, nodes[-1].home / "logs")))
        fed = Federation(server, nodes, kept, where)
        stack.callback(lambda: [process.kill() for process in fed.started("flwr-serverapp")])  # which outlives what has started it
        yield fed
        stop.set()


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Keep what the keepers of all machines say, which otherwise is on their terminals."""
    said, handler = logging.getLogger("homing"), logging.FileHandler(path)
    said.addHandler(handler)
    try:
        yield
    finally:
        said.removeHandler(handler)
        handler.close()


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    """A small file system of its own, so that it can be full."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", place], capture_output=True, check=False)
    try:
        yield
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)


@contextmanager
def _looking(kept: Sequence[Keeper]) -> Iterator[threading.Event]:
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.5):
            for keeper in list(kept):
                keeper.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def patiently(work: Callable[[], object], until: float = 60.0) -> None:
    """Try again while an `InputError` says no; after ``until`` seconds it is raised."""
    end = time.monotonic() + until
    while True:
        try:
            work()
            return
        except InputError:
            if time.monotonic() > end:
                raise
            time.sleep(1.0)

"""A federation on this machine, held against one process, then broken on purpose: ``python -m simulations.deploy.trial``.

Behind nginx, with TLS and keys: a server and three nodes with six users, each node on a host of its own (network namespaces; loopback
where they are refused). The run without faults must end where the fused simulation ends. Each fault strikes once at a random moment of
a run under guarantee E with noise from the operating system; afterwards every round has to be there, every user's private adapter, and
in each node's ledger at least what was released. Writes ``deploy.json``.
"""

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from client import base as bases
from client import data
from client.private import folder_name
from configs.errors import InputError
from configs.scenario import Scenario, load
from server import checkpoint, rounds
from server.app import run_of
from server.report.files import read_rounds
from simulations.deploy import files, keys, machines, members
from simulations.deploy.files import Member, Server
from simulations.deploy.hosts import Hosts, hosts
from simulations.deploy.keeper import Command, Keeper
from simulations.flower_ray import free_ports
from simulations.training import World, train
from strategies.privacy.ledger import LEDGER, Ledger
from strategies.tree import State

NODES, USERS, ROUNDS = 3, 6, 4
SMALL = (
    f"rounds={ROUNDS}", "personalize=1", "evaluate_every=0", "controls=[shared,shared_private]", f"data.users={USERS}",
    "data.unseen_users=0", "data.min_examples=20", "data.max_examples=30", "shared_training.optimizer=sgd", "shared_training.lr=0.1",
    "private_training.optimizer=sgd", "private_training.lr=0.1", "engine.device=cpu", "engine.threads=1",
)  # fmt: skip
GUARDED = ("privacy=example", "privacy.example.epsilon=50", "rounds=3")  # what is asked for again costs again
PATIENCE = 900.0  # seconds for one run
Strike = Callable[["Federation"], None]


@dataclass
class Federation:
    """A server and its nodes, running."""

    server: Server
    nodes: list[Member]
    keepers: list[Keeper]  # the server's, then the nodes'
    hosts: Hosts

    def kill(self, keeper: int, name: str) -> None:
        """Kill -9 what is kept running."""
        self.keepers[keeper].running[name].kill()

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
    server = files.server(lab)
    with ExitStack() as stack:
        kept = [stack.enter_context(Keeper(machines.of_server(server), server.home / "logs"))]
        stop = stack.enter_context(_looking(kept))
        nodes = []
        for index in range(NODES):
            place = members.add(server, f"n{index}", partition=f"{index}/{NODES}", port=ports[index])
            _patiently(lambda index=index: members.register(server, f"n{index}"))
            nodes.append(files.member(place))
            commands = [replace(c, words=[*where.on(f"n{index}"), *c.words]) for c in machines.of_node(nodes[-1])]
            kept.append(stack.enter_context(Keeper(commands, nodes[-1].home / "logs")))
        yield Federation(server, nodes, kept, where)
        stop.set()


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


def _patiently(work: Callable[[], object], until: float = 60.0) -> None:
    end = time.monotonic() + until
    while True:
        try:
            work()
            return
        except InputError:
            if time.monotonic() > end:
                raise
            time.sleep(1.0)


# ---------------------------------------------------------------------- runs
def ran(fed: Federation, source: str, overrides: Sequence[str], out: str, strike: Strike | None = None, quorum: float = 0.0,
        deadline: float = 600.0) -> tuple[Scenario, Path]:  # fmt: skip
    """Run a scenario on the nodes; ``strike`` happens once, at a random moment after it has begun."""
    scenario, place = load(source, overrides), fed.server.home / "runs" / out
    last = rounds.last_round(scenario)

    def finished() -> bool:
        found = checkpoint.latest(place) if place.exists() else None
        return found is not None and found.round >= last and (place / "summary.json").exists()

    config = {
        "scenario": source,
        "overrides": shlex.join(overrides),
        "out": out,
        "nodes": NODES,
        "quorum": quorum,
        "deadline": deadline,
    }
    struck = threading.Thread(target=_strike, args=(fed, strike, place), daemon=True) if strike else None
    if struck:
        struck.start()
    machines.run(fed.server, config, finished, lambda text: log(text[-2000:]))
    if struck:
        struck.join(PATIENCE)
    return scenario, place


def _strike(fed: Federation, strike: Strike, place: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not place.exists() and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(random.uniform(0.0, 15.0))
    log(f"strike at {time.strftime('%H:%M:%S')}")
    strike(fed)


def seconds(place: Path) -> dict[str, float]:
    """Seconds of a round by part, means over the rounds of a run; those of loading and training are means over nodes, too.

    ``waiting``: of an exchange with the nodes what is neither: Flower's polls, processes that start, the slowest node.
    """
    rows, found = read_rounds(place), dict[str, list[float]]()
    for row in rows:
        parts, nodes = row["seconds"], {part: s / NODES for part, s in row.get("node_seconds", {}).items()}
        waiting = parts.get("train", 0.0) - sum(nodes.values())
        for part, value in {"waiting": waiting, **nodes, **{p: s for p, s in parts.items() if p != "train"}}.items():
            found.setdefault(part, []).append(value)
    return {part: round(sum(values) / len(rows), 3) for part, values in found.items()}


def account(fed: Federation, scenario: Scenario, place: Path) -> dict[str, Any]:
    """What is left of a run: rounds, users without a private adapter, and whether ledgers hold at least what was released."""
    rows, run = read_rounds(place), run_of(place, 0)
    kept = {path.parent.name for node in fed.nodes for path in (node.home / "nodes" / folder_name(run)).glob("*/*") if path.is_file()}
    booked: dict[str, int] = {}
    for node in fed.nodes:
        if (node.home / LEDGER).exists():
            with Ledger(node.home / LEDGER) as ledger:
                booked |= {user: ledger.rounds(user, run) for user in ledger.users()}
    least = sum(row["releases"] for row in rows)
    return {
        "rounds_finished": len(rows),
        "users_lost": USERS - len(kept),
        "ledger_ok": scenario.privacy.of_examples and sum(booked.values()) >= least,
        "dropped": sum(sum(row["dropped"].values()) for row in rows),
        "releases": [row["releases"] for row in rows],
    }


# ---------------------------------------------------------------------- faults
def kill(keeper: int, name: str) -> Strike:
    """Kill -9 one of the processes that are kept running."""
    return lambda fed: fed.kill(keeper, name)


def kill_started(name: str) -> Strike:
    """Kill -9 a process that Flower starts for a task, as soon as there is one."""

    def strike(fed: Federation) -> None:
        homes = {str(fed.server.home), *(str(node.home) for node in fed.nodes)}
        end = time.monotonic() + 120.0
        while time.monotonic() < end:
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if name in " ".join(process.cmdline()) and process.environ().get("HOMING_HOME") in homes:
                        process.kill()
                        return
            time.sleep(0.1)

    return strike


def offline(length: float = 30.0) -> Strike:
    """Take a node's network away; without namespaces its SuperNode is frozen, which answers as little."""

    def strike(fed: Federation) -> None:
        if fed.hosts.apart:
            fed.hosts.cut("n0")
            time.sleep(length)
            fed.hosts.cut("n0", False)
        else:
            process = fed.keepers[1].running["supernode"]
            process.send_signal(signal.SIGSTOP)
            time.sleep(length)
            process.send_signal(signal.SIGCONT)

    return strike


def everything(fed: Federation) -> None:
    """Kill -9 all processes of one node."""
    for name in list(fed.keepers[2].running):
        fed.kill(2, name)


KILLS: dict[str, Strike] = {
    "kill superlink": kill(0, "superlink"), "kill superexec": kill(0, "superexec"), "kill nginx": kill(0, "nginx"),
    "kill serverapp": kill_started("flwr-serverapp"), "kill supernode": kill(1, "supernode"), "kill trainer": kill(1, "trainer"),
    "kill clientapp": kill_started("flwr-clientapp"), "kill a whole node": everything, "network away for 30 s": offline(),
}  # fmt: skip
FAULTY = ("nan", "huge", "shape", "replayed", "slow")


def struck(fed: Federation, source: str, overrides: Sequence[str], name: str, number: int) -> dict[str, Any]:
    """One fault in one run, in which everybody has to be heard from in every round."""
    return account(fed, *ran(fed, source, [*overrides, *GUARDED], f"fault{number}", KILLS[name], quorum=1.0, deadline=120.0))


def misbehaved(fed: Federation, source: str, overrides: Sequence[str], kind: str) -> dict[str, Any]:
    """A run in which one node's trainer is `simulations.deploy.faulty`; the others' users have to be heard from."""
    real = fed.keepers[3].commands["trainer"]
    words = [*fed.hosts.on("n2"), sys.executable, "-m", "simulations.deploy.faulty", kind]
    fed.replace(3, replace(real, words=words))
    try:
        return account(fed, *ran(fed, source, [*overrides, *GUARDED], f"node-{kind}", quorum=0.5, deadline=120.0))
    finally:
        fed.replace(3, real)


# ---------------------------------------------------------------------- strangers
def strangers(fed: Federation) -> list[str]:
    """What was tried from another host without a key that is let in, and refused. Raises `InputError` for what was not."""
    node = fed.nodes[0].folder
    other = fed.server.folder / "stranger"
    keys.node(other)
    known = members.known(fed.server)
    told = [fed.hosts.address, fed.server.port, fed.server.superlink, node / "ca.crt", other / "node.key", node / "node.key",
            known["n0"].node, known["n1"].node]  # fmt: skip
    words = [sys.executable, "-m", "simulations.deploy.stranger", *map(str, told)]
    done = subprocess.run([*fed.hosts.on("out"), *words], capture_output=True, text=True, check=False, cwd=machines.ROOT)
    if done.returncode:
        raise InputError(f"a stranger was let in, or could not try: {done.stdout}{done.stderr[-800:]}")
    return json.loads(done.stdout)


def revoked(fed: Federation) -> str:
    """Revoke a node's key: what that signs is refused at once. It is let in again under a new key."""
    from simulations.deploy import stranger

    address, before = ("127.0.0.1" if not fed.hosts.apart else fed.hosts.address, fed.server.port), members.known(fed.server)["n2"].node
    key = stranger.private_key(fed.nodes[2].folder / "node.key")
    if stranger.pull(address, fed.server.folder / "ca.crt", key, before) != 200:
        raise InputError("a registered node was refused")
    members.rotate(fed.server, "n2")
    if stranger.pull(address, fed.server.folder / "ca.crt", key, before) == 200:
        raise InputError("a revoked key was let in")
    fed.kill(3, "supernode")
    return "revoked key: 401"


# ---------------------------------------------------------------------- the trial
def fused(source: str, overrides: Sequence[str], folder: Path) -> State:
    """Where one process ends."""
    scenario = load(source, overrides)
    base = bases.load(scenario.model, scenario.engine.device)
    world = World(base, data.load(scenario.data, base.tokenizer, scenario.seed))
    return train(scenario, world, folder, (), lambda _row: None)[0].shared


def trial(source: str, overrides: Sequence[str], kills: Sequence[str], faulty: Sequence[str], folder: Path,
          keep: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:  # fmt: skip
    """All of it; what `deploy.json` holds. ``keep`` is told what has come out so far."""
    here = fused(source, overrides, folder / "fused")
    names = [f"n{i}" for i in range(NODES)] + ["out"]
    with hosts(names) as where, federation(folder, where) as fed:
        _, place = ran(fed, source, overrides, "whole", quorum=1.0)
        there = checkpoint.latest(place)
        assert there is not None
        apart = max(float((here[name] - there.shared[name]).abs().max()) for name in here)
        faults: dict[str, Any] = {}
        found = {
            "rounds": ROUNDS, "nodes": NODES, "users": USERS, "max_abs_diff": apart, "hosts_apart": where.apart,
            "seconds_per_round": seconds(place), "faults": faults, "refused": [*strangers(fed), revoked(fed)],
        }  # fmt: skip
        keep(found)
        for number, name in enumerate(kills):
            key = name if name not in faults else f"{name}, {number}"
            faults[key] = struck(fed, source, overrides, name, number)
            keep(found)
        for kind in faulty:
            faults["node is 10 times as slow" if kind == "slow" else f"node sends {kind}"] = misbehaved(fed, source, overrides, kind)
            keep(found)
        return found


def say(what: object) -> None:
    """A line of what has come out so far."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    sys.stdout.flush()


def log(what: str) -> None:
    """What Flower says meanwhile."""
    sys.stderr.write(f"{what}\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("deploy.json"))
    parser.add_argument("--random", type=int, default=0, help="instead of each fault once, so many random ones")
    parser.add_argument("--none", action="store_true", help="no faults")
    parser.add_argument("--scenario", default="movielens")
    parser.add_argument("overrides", nargs="*", help="instead of six users of MovieLens")
    said = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # processes and namespaces go with this one
    kills = [] if said.none else random.choices(list(KILLS), k=said.random) if said.random else list(KILLS)
    faulty = () if said.none or said.random else FAULTY

    def keep(found: Mapping[str, Any]) -> None:
        said.out.write_text(json.dumps(found, indent=1) + "\n")
        say(list(found["faults"].items())[-1:] or {name: value for name, value in found.items() if name != "refused"})

    with tempfile.TemporaryDirectory(prefix="homing-trial-") as scratch:
        found = trial(said.scenario, said.overrides or SMALL, kills, faulty, Path(scratch).resolve(), keep)
    bad = [name for name, fault in found["faults"].items() if fault["users_lost"] or not fault["ledger_ok"]]
    say(f"{said.out}: {len(found['faults'])} faults, {len(bad)} with a loss{': ' + ', '.join(bad) if bad else ''}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from client import base as bases
from client import data
from configs.errors import InputError
from configs.scenario import Scenario, load
from server import checkpoint, rounds
from server.app import run_of
from server.report.files import read_rounds
from simulations import stores
from simulations.deploy import faults, keys, machines, members
from simulations.deploy.faults import FAULTS, Fault, Strike
from simulations.deploy.federation import NODES, Federation, federation
from simulations.deploy.hosts import hosts
from simulations.training import World, train
from strategies.privacy.ledger import LEDGER, Ledger
from strategies.tree import State

SMALL = (
    "rounds=4", "personalize=1", "evaluate_every=0", "controls=[shared,shared_private]", "data.users=6",
    "data.unseen_users=0", "data.min_examples=20", "data.max_examples=30", "shared_training.optimizer=sgd", "shared_training.lr=0.1",
    "private_training.optimizer=sgd", "private_training.lr=0.1", "engine.device=cpu", "engine.threads=1",
)  # fmt: skip
GUARDED = ("privacy=example", "rounds=2")
EPSILON = 20.0  # more for each run: a ledger is one for all of them, and an accountant takes less than 709 in all
PATIENCE = 900.0  # seconds for one run
NONE = Fault()


# ---------------------------------------------------------------------- runs
def ran(fed: Federation, source: str, overrides: Sequence[str], out: str, fault: Fault = NONE,
        deadline: float = 600.0) -> tuple[Scenario, Path, int]:  # fmt: skip
    """Run a scenario on the nodes; ``fault`` strikes once, at a random moment after it has begun; the third of what is returned
    is the last round that was there by then.
    """
    scenario, place = load(source, overrides), fed.server.home / "runs" / out

    def finished() -> bool:
        return _committed(place) >= rounds.last_round(scenario) and (place / "summary.json").exists()

    config, fed.place = _config(source, overrides, out, fault, deadline), place
    with ThreadPoolExecutor(1) as aside:
        struck = aside.submit(_strike, fed, fault.strike, place) if fault.strike else None
        machines.run(fed.server, config, finished, lambda text: log(fed, text))
        return scenario, place, struck.result(PATIENCE) if struck else 0


def _config(source: str, overrides: Sequence[str], out: str, fault: Fault, deadline: float) -> dict[str, Any]:
    return {"scenario": source, "overrides": shlex.join(overrides), "out": out, "nodes": NODES, "quorum": fault.quorum,
            "deadline": deadline}  # fmt: skip


def _strike(fed: Federation, strike: Strike, place: Path) -> int:
    end = time.monotonic() + PATIENCE
    while not place.exists() and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(random.uniform(0.0, 15.0))
    after = _committed(place)
    log(fed, f"strike at {time.strftime('%H:%M:%S')}, after round {after}")
    strike(fed)
    return after


def _committed(place: Path) -> int:
    found = checkpoint.latest(place) if place.exists() else None
    return found.round if found else 0


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
    """What is left of a run: rounds, users without a sound private adapter, and whether ledgers hold at least what was released."""
    rows, run, places = read_rounds(place), run_of(place, 0), [fed.store(node) for node in fed.nodes]
    kept = [user for place in places if place.exists() for user in place.iterdir() if user.is_dir() and not user.name.startswith(".")]
    damaged = [sentence for node in fed.nodes for sentence in stores.damage(node.home, fed.key(node))[0]]
    booked: dict[str, int] = {}
    for node in fed.nodes:
        if (node.home / LEDGER).exists():
            with Ledger(node.home / LEDGER) as ledger:
                booked |= {user: ledger.rounds(user, run) for user in ledger.users()}
    least = sum(row["releases"] for row in rows)
    return {
        "rounds_finished": len(rows),
        "users": rows[-1]["users"],  # of nodes that had come by then
        "users_lost": rows[-1]["users"] - len(kept) + len(damaged),
        "ledger_ok": scenario.privacy.of_examples and sum(booked.values()) >= least,
        "dropped": sum(sum(row["dropped"].values()) for row in rows),
        "releases": [row["releases"] for row in rows],
    }


def struck(fed: Federation, source: str, overrides: Sequence[str], fault: Fault, number: int) -> dict[str, Any]:
    """One fault in one run, and what of it an operator can read."""
    since, guarded = faults.marks(fed), [*GUARDED, f"privacy.example.epsilon={EPSILON * (number + 1)}"]
    with faults.trainer(fed, fault.trainer) if fault.trainer else nullcontext():
        scenario, place, after = ran(fed, source, [*overrides, *guarded], f"fault{number}", fault, deadline=120.0)
    found = account(fed, scenario, place) | {"after_round": after}
    return found | {"heard": faults.heard(fed, since, fault.heard)} if fault.heard else found


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


def tampered(fed: Federation, source: str, overrides: Sequence[str]) -> str:
    """Send nodes a bundle in which one line has been added. None of them may run it."""
    with tempfile.TemporaryDirectory() as scratch:
        app = Path(scratch)
        for name in ("configs", "strategies", "client", "server"):
            shutil.copytree(machines.ROOT / name, app / name)
        shutil.copy(machines.ROOT / "pyproject.toml", app)
        with (app / "client" / "app.py").open("a") as file:
            file.write(f"\n__import__('pathlib').Path({str(app / 'ran')!r}).touch()\n")
        since, config = faults.marks(fed), _config(source, overrides, "tampered", NONE, 60.0)
        with suppress(InputError):
            machines.run(fed.server, config, lambda: False, lambda text: log(fed, text), app, again=1)
        said = [faults.heard(fed, since, "FAB verification failed", node.home) for node in fed.nodes]
        if not all(said) or (app / "ran").exists():
            raise InputError(f"a bundle that had been tampered with was run: nodes said {said}")
    return f"tampered app bundle: FAB verification failed on {len(said)} of {len(said)} nodes"


# ---------------------------------------------------------------------- the trial
def fused(source: str, overrides: Sequence[str], folder: Path) -> State:
    """Where one process ends."""
    scenario = load(source, overrides)
    base = bases.load(scenario.model, scenario.engine.device)
    world = World(base, data.load(scenario.data, base.tokenizer, scenario.seed))
    return train(scenario, world, folder, (), lambda _row: None)[0].shared


def trial(source: str, overrides: Sequence[str], names: Sequence[str], folder: Path,
          keep: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:  # fmt: skip
    """All of it; what `deploy.json` holds. ``names``: of `FAULTS`. ``keep`` is told what has come out so far."""
    here = fused(source, overrides, folder / "fused")
    with hosts([f"n{i}" for i in range(NODES)] + ["out"]) as where, federation(folder, where) as fed:
        scenario, place, _ = ran(fed, source, overrides, "whole")
        there = checkpoint.latest(place)
        assert there is not None
        apart = max(float((here[name] - there.shared[name]).abs().max()) for name in here)
        found = {
            "rounds": scenario.rounds, "nodes": NODES, "users": read_rounds(place)[0]["users"], "max_abs_diff": apart,
            "hosts_apart": where.apart, "seconds_per_round": seconds(place), "faults": dict[str, Any](),
            "refused": [*strangers(fed), revoked(fed), tampered(fed, source, overrides)],
        }  # fmt: skip
        keep(found)
        for number, name in enumerate(names):
            key = name if name not in found["faults"] else f"{name}, {number}"
            try:
                found["faults"][key] = struck(fed, source, overrides, FAULTS[name], number)
            except Exception as error:  # the others are still to be seen
                lost = {"rounds_finished": 0, "users_lost": found["users"], "ledger_ok": False}
                found["faults"][key] = {**lost, "error": f"{type(error).__name__}: {error}"}
            keep(found)
        return found


def say(what: object) -> None:
    """A line of what has come out so far."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    sys.stdout.flush()


def log(fed: Federation, what: str) -> None:
    """Keep what a run says meanwhile beside the server's logs."""
    with (fed.server.home / "logs" / "run.log").open("a") as file:
        file.write(f"{what}\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("deploy.json"))
    parser.add_argument("--random", type=int, default=0, help="instead of each fault once, so many random ones")
    parser.add_argument("--none", action="store_true", help="no faults")
    parser.add_argument("--only", nargs="*", choices=[*FAULTS], metavar="FAULT", help="these faults: " + ", ".join(FAULTS))
    parser.add_argument("--scenario", default="movielens")
    parser.add_argument("overrides", nargs="*", help="instead of six users of MovieLens")
    said = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # processes and namespaces go with this one
    names = [] if said.none else random.choices(list(FAULTS), k=said.random) if said.random else said.only or list(FAULTS)

    def keep(found: Mapping[str, Any]) -> None:
        said.out.write_text(json.dumps(found, indent=1) + "\n")
        say(list(found["faults"].items())[-1:] or {name: value for name, value in found.items() if name != "refused"})

    with tempfile.TemporaryDirectory(prefix="homing-trial-") as scratch:
        found = trial(said.scenario, said.overrides or SMALL, names, Path(scratch).resolve(), keep)
    bad = [name for name, fault in found["faults"].items() if fault["users_lost"] or not fault["ledger_ok"]]
    say(f"{said.out}: {len(found['faults'])} faults, {len(bad)} with a loss{': ' + ', '.join(bad) if bad else ''}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

"""Do Flower's messages change what is learned? The same scenario as a real ``flwr run`` and in one fused process.

``python -m simulations.parity [SCENARIO] [key=value ...]`` prints how far the adapters that both end at lie apart, as a share
of how far training has moved them: the largest difference of any entry over the largest move of any entry. Nodes add up in
another order and in passes of other widths than one process does, so the share is not zero, but it must stay below
`TOLERANCE`. AdamW divides tiny gradients by their size and so makes more of the same rounding than SGD.

Flower runs on Ray, or with ``--deployment`` over a SuperLink and a SuperNode for each node, all on this machine. A SuperNode
then has a store of its own, and the server must hold no tensors but the run's checkpoint.
"""

import math
import os
import shlex
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from client import base as bases
from client import data
from client.private import PrivateStore, folder_name
from client.split import split
from configs.errors import InputError
from configs.scenario import Scenario, load
from server import checkpoint, rounds
from server.app import run_of
from simulations import flower_ray
from simulations.training import World, train
from strategies.tree import State, subtract

TOLERANCE = {"sgd": 5e-5, "adamw": 1e-2}  # of the largest move
CPUS = 2  # processes of Ray that play the nodes; each loads the base
ROOT = Path(__file__).resolve().parents[1]
SAME = ("engine.device=cpu", "engine.threads=1")  # what rounding depends on
SMALL = (
    "rounds=2", "users_per_round=8", "personalize=1", "evaluate_every=0", "controls=[shared,shared_private]",
    "data.users=12", "data.unseen_users=2", "data.min_examples=20", "data.max_examples=30",
    "shared_training.optimizer=sgd", "shared_training.lr=0.1", "private_training.optimizer=sgd", "private_training.lr=0.1", *SAME,
)  # fmt: skip


class Gap(NamedTuple):
    """Two ends of the same training."""

    moved: float  # largest move of any entry in the fused run
    apart: float  # largest difference of any entry between the runs; infinite where one is no number or names differ

    @property
    def share(self) -> float:
        """The difference as a share of the move; infinite where nothing has moved."""
        return self.apart / self.moved if self.moved else math.inf


@dataclass(frozen=True)
class Parity:
    """What a comparison found."""

    shared: Gap
    private: Mapping[str, Gap]  # by user
    flower: float  # wall seconds of the whole flwr run
    fused: float  # and of the fused one
    said: str  # what flwr run wrote
    strays: tuple[str, ...] = ()  # files of tensors at a deployment's server that are not the run's checkpoint

    @property
    def worst(self) -> float:
        """The largest share, of the shared adapter and of every user's private one."""
        return max(gap.share for gap in (self.shared, *self.private.values()))


def compare(source: str, overrides: Sequence[str], nodes: int, folder: Path, deployment: bool = False) -> Parity:
    """Run a scenario on so many nodes of Flower's, then fused, both under ``folder``, and compare the ends.

    Raises `InputError` when either fails or stops before its last round.
    """
    scenario, home = load(source, overrides), folder / "home"
    homes = [folder / f"node{i}" for i in range(nodes)] if deployment else [home]
    with flower_ray.flower_home(folder) as env:
        env["HOMING_HOME"] = str(home)
        config = {"scenario": source, "overrides": shlex.join(overrides), "out": "parity", "nodes": nodes}
        done = flower_ray.deploy(ROOT, env, homes, config) if deployment else flower_ray.run(ROOT, env, nodes, config, CPUS)
    there = checkpoint.latest(home / "runs" / "parity")
    if there is None or there.round < rounds.last_round(scenario):
        raise InputError(f"flwr run did not come to the last round: {done.said[-1500:]}")
    began = time.perf_counter()
    base = bases.load(scenario.model, scenario.engine.device)
    world = World(base, data.load(scenario.data, base.tokenizer, scenario.seed))
    start = {name: value.cpu() for name, value in split(scenario, base).start().items()}
    here, _ = train(scenario, world, folder / "fused", (), lambda _row: None)
    seconds = time.perf_counter() - began
    run = run_of(home / "runs" / "parity", 0)
    stores = [PrivateStore(place / "nodes" / folder_name(run)) for place in homes]
    private = dict(_private(world.dataset.users, start, PrivateStore(folder / "fused" / "private"), stores))
    shared = gap({name: start[f"shared/{name}"] for name in here.shared}, here.shared, there.shared)
    strays = sorted(str(f.relative_to(home)) for f in home.rglob("*.safetensors") if deployment and not f.match("runs/parity/shared-*"))
    return Parity(shared, private, done.seconds, seconds, done.said, tuple(strays))


def gap(start: State, here: State, there: State) -> Gap:
    """How far a state has moved from its start, and how far two ends of it lie apart."""
    moved = _largest(subtract(here, start))
    return Gap(moved, _largest(subtract(here, there)) if here.keys() == there.keys() else math.inf)


def tolerance(scenario: Scenario) -> float:
    """The share that a scenario's optimizers explain."""
    return max(TOLERANCE[local.optimizer] for local in (scenario.shared_training, scenario.private_training))


def _private(users: Sequence[str] | Mapping[str, object], start: State, here: PrivateStore,
             there: Sequence[PrivateStore]) -> Iterator[tuple[str, Gap]]:  # fmt: skip
    for user in users:
        mine, found = here.load(user, sys.maxsize), [s for store in there if (s := store.load(user, sys.maxsize)) is not None]
        if mine is not None or found:
            yield user, gap(start, mine or {}, found[0] if len(found) == 1 else {})  # one node keeps a user, no more


def _largest(state: State) -> float:
    found = [float(value.abs().max()) for value in state.values()]
    return max(found, default=0.0) if all(map(math.isfinite, found)) else math.inf


# ---------------------------------------------------------------------- the command
console = Console(highlight=False, soft_wrap=True)


def command(
    scenario: Annotated[str, typer.Argument(help="A name in configs/ or a YAML file; with nothing said, a small MovieLens.")] = "",
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. rounds=2 data.users=12")] = None,
    nodes: Annotated[int, typer.Option(help="How many nodes Flower simulates.", min=1)] = 3,
    deployment: Annotated[bool, typer.Option("--deployment", help="A SuperLink and SuperNodes instead of Ray.")] = False,
) -> None:
    """Run a scenario on Flower and fused, and compare the adapters. Exit code 1 where they differ."""
    asked = list(overrides or ()) if scenario else list(SMALL)
    chosen = load(scenario or "movielens", asked)
    where = "over a SuperLink and SuperNodes" if deployment else "on Ray"
    console.print(f"flwr run {where}, then the same fused: a few minutes with the default model on two cores")
    with tempfile.TemporaryDirectory(prefix="homing-parity-") as scratch:
        found = compare(scenario or "movielens", asked, nodes, Path(scratch), deployment)
    allowed = tolerance(chosen)
    console.print(f"flwr run on {nodes} nodes: {found.flower:.0f} s; fused: {found.fused:.0f} s")
    console.print(line("shared adapter", found.shared))
    if found.private:
        user, worst = max(found.private.items(), key=lambda item: item[1].share)
        console.print(line(f"private adapters of {len(found.private)} users, the worst ({user})", worst))
    if deployment:
        console.print(f"tensors at the server beside its checkpoint: {', '.join(found.strays) or 'none'}")
    ok = found.worst <= allowed and not found.strays
    console.print(f"largest share {found.worst:.1e}, allowed {allowed:.0e}: {'the same' if ok else 'NOT THE SAME'}")
    if not ok:
        raise typer.Exit(1)


def line(name: str, found: Gap) -> str:
    """A gap in words."""
    return f"{name}: moved {found.moved:.2e}, apart {found.apart:.1e}, {found.share:.1e} of the move"


def main() -> None:
    """Run the command; a person's mistake is one sentence and exit code 2. What was started ends with this process."""
    os.environ |= flower_ray.QUIET
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        typer.run(command)
    except InputError as error:
        console.print(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()

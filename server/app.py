"""The Flower server: the one round loop over a `GridRuntime`, then the test split and the report."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from client import base as bases
from client import wire
from client.node import split
from configs.errors import InputError
from configs.scenario import Scenario, label
from server import aggregation, checkpoint, rounds
from server.finish import finish
from server.grid import GridRuntime
from server.secure_grid import SecureGridRuntime
from strategies.base import Task
from strategies.files import home, write_text
from strategies.privacy import rules
from strategies.tree import State

log = logging.getLogger("flwr.homing")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume the scenario of the run config in ``$HOMING_HOME/runs``.

    Controls that need everyone's data in one place, or a training of their own, are left to the command line.
    """
    try:
        scenario = wire.scenario_of(context.run_config)
        out = str(context.run_config.get("out", "")) or label(scenario)
        page = run(scenario, grid, home() / "runs" / Path(out).expanduser(), int(context.run_config.get("nodes", 0)))
    except InputError as error:
        log.error("error: %s", error)
        raise
    log.info("report: %s", page)


def run(scenario: Scenario, grid: Grid, folder: Path, nodes: int = 0) -> Path:
    """Run or resume a scenario on a grid, evaluate its last round and write the report. Returns the page's path."""
    with checkpoint.held(folder):
        return _run(scenario, grid, folder, nodes)


def _run(scenario: Scenario, grid: Grid, folder: Path, nodes: int) -> Path:
    rules.refuse(scenario)
    rules.refuse_over_flower(scenario)
    clock = {"load": time.perf_counter()}
    aggregator = aggregation.build(scenario)
    checkpoint.begin(folder, scenario)
    shared = _start(scenario, folder)
    clock["nodes"] = time.perf_counter()
    runtime = GridRuntime(grid, run_of(folder, grid.run.run_id), nodes)
    log.info("%s: %d users on %d nodes; %s", scenario.name, len(runtime.users()), len(runtime.homes()), folder)
    if note(folder, runtime) and scenario.privacy.promises:
        log.warning("the noise of a node comes from the seed: this run is a simulation and protects nobody")
    clock["rounds"] = time.perf_counter()
    nodes_or_sums = SecureGridRuntime(runtime, scenario) if scenario.privacy.secure else runtime
    state = rounds.run(scenario, nodes_or_sums, aggregator, shared, folder, _observe)
    clock["test"] = time.perf_counter()
    table = runtime.evaluate(Task(state.round + 1, state.shared), "test", scenario.controls) or unknown(runtime.users())
    clock["end"] = time.perf_counter()
    return finish(folder, table, clock, state)


def run_of(folder: Path, run_id: int) -> str:
    """The id of the Flower run that began this folder: nodes keep private adapters under it, and a resumed run needs them."""
    path = folder / "flower.json"
    if not path.exists():
        write_text(path, json.dumps({"run": str(run_id)}))
    return json.loads(path.read_text())["run"]


def note(folder: Path, runtime: GridRuntime) -> bool:
    """Keep, for the report, whether any node was only played, which is returned, and what nodes let out beside releases.

    Where a run is resumed on other nodes, what any of them was and did.
    """
    path = folder / "flower.json"
    known = json.loads(path.read_text())
    known["simulated"] = known.get("simulated", False) or runtime.simulated()
    known["lets"] = sorted({*known.get("lets", ()), *runtime.lets()})
    write_text(path, json.dumps(known))
    return known["simulated"]


def unknown(users: Sequence[str]) -> list[dict[str, Any]]:
    """The users' table where no node lets anything out about them."""
    return [{"user": user, "seen": True, "train": None, "test": None} for user in users]


def _start(scenario: Scenario, folder: Path) -> State:
    """The shared adapter that the next round starts from. Its shapes are the base model's; the server keeps no base after."""
    last = checkpoint.latest(folder)
    return last.shared if last else split(scenario, bases.load(scenario.model, "cpu")).shared_start()


def _observe(row: dict[str, Any]) -> None:
    scores = "".join(f", {name} {found['nll']:.4f}" for name, found in row.get("validation", {}).items() if "nll" in found)
    loss = "" if row["train_loss"] is None else f", loss {row['train_loss']:.4f}"
    log.info("round %d: %d of %d users%s%s", row["round"], row["releases"], row["users"], loss, scores)

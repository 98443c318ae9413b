"""The Flower server: the one round loop over a `GridRuntime`, then the test split and the report."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from math import inf
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from client import base as bases
from client import wire
from client.split import split
from client.store import origin
from client.store.manifest import Origin
from configs.errors import InputError
from configs.home import home
from configs.scenario import Scenario, label, scenario_hash
from server import aggregation, checkpoint, rounds
from server.checkpoint import Checkpoint
from server.finish import finish
from server.grid import GridRuntime
from server.joint import PLAN, Joint, kept
from server.secure_grid import SecureGridRuntime
from strategies.base import Aggregator, Task
from strategies.files import write_text
from strategies.privacy import rules
from strategies.privacy.joint import needed
from strategies.privacy.ledger import JOINT
from strategies.privacy.noise import declared
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
        noise = declared("run", context.run_config.get("noise", ""))
        earlier = str(context.run_config.get("from", ""))
        since = home() / "runs" / Path(earlier).expanduser() if earlier else None
        page = run(scenario, grid, home() / "runs" / Path(out).expanduser(), terms(context.run_config), noise, since)
    except InputError as error:
        log.error("error: %s", error)
        raise
    log.info("report: %s", page)


def terms(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run config says of waiting, as `GridRuntime` takes it. Raises `InputError` for what cannot be waited for."""
    said = {
        "nodes": run_config.get("nodes", 0),
        "patience": run_config.get("patience", 300.0),
        "deadline": run_config.get("deadline", 3600.0),
        "quorum": run_config.get("quorum", 0.0),
    }
    for name, value in said.items():
        most = 1.0 if name == "quorum" else inf
        if isinstance(value, bool) or not isinstance(value, int if name == "nodes" else int | float) or not 0 <= value <= most:
            raise InputError(
                f"{name} in the run config must be a {'whole ' * (name == 'nodes')}number from 0{' to 1' * (most == 1)}, got {value!r}"
            )
    return said


def run(scenario: Scenario, grid: Grid, folder: Path, terms: Mapping[str, Any] | None = None, noise: str = "",
        since: Path | None = None) -> Path:  # fmt: skip
    """Run or resume a scenario on a grid, evaluate its last round and write the report. Returns the page's path.

    ``since``: the folder of the run of the period before, from which a later period of a life goes on.

    ``terms``: what `terms` gives. ``noise``: where that of guarantee U comes from, "system" or "seed"; "": the seed where all nodes are
    only played, else the system.
    """
    rules.refuse(scenario)
    aggregator = aggregation.build(scenario)
    with checkpoint.held(folder):
        return _run(scenario, aggregator, grid, folder, terms or {}, noise, since)


def _run(scenario: Scenario, aggregator: Aggregator, grid: Grid, folder: Path, terms: Mapping[str, Any], noise: str,
         since: Path | None) -> Path:  # fmt: skip
    clock = {"load": time.perf_counter()}
    before = _before(scenario, since)
    checkpoint.begin(folder, scenario)
    if since and not (folder / "flower.json").exists():
        write_text(folder / "flower.json", (since / "flower.json").read_text())  # nodes go on with what they keep under its run
    run = run_of(folder, grid.run.run_id)
    shared, made_on = _start(scenario, folder)
    clock["nodes"] = time.perf_counter()
    runtime = GridRuntime(grid, run, origin=made_on, **terms)
    log.info("%s: %d users on %d nodes; %s", scenario.name, len(runtime.users()), len(runtime.homes()), folder)
    known = note(folder, runtime, noise)
    if known["simulated"] and scenario.privacy.promises:
        log.warning("some of the noise comes from the seed: this run is a simulation and protects nobody")
    clock["rounds"] = time.perf_counter()
    with _joint(scenario, folder, runtime, known["noise"] == "seed") as joint:
        nodes_or_sums = SecureGridRuntime(runtime, scenario, joint.plan if joint else None) if scenario.privacy.secure else runtime
        made = Origin(*made_on)
        state = rounds.run(scenario, nodes_or_sums, aggregator, shared, folder, _observe, joint, made, before)
    clock["test"] = time.perf_counter()
    table = runtime.evaluate(Task(state.round + 1, state.shared), "test", scenario.controls) or unknown(runtime.users())
    clock["end"] = time.perf_counter()
    return finish(folder, table, clock, state)


def _before(scenario: Scenario, since: Path | None) -> Checkpoint | None:
    """Where the period before has ended. Raises `InputError` where there is none, and where one is named that nothing goes on from."""
    if scenario.life.period < 2:
        if since:
            raise InputError("'from' in the run config is for a later period of a life; set life.period, or leave it out")
        return None
    if since is None or not (since / "flower.json").is_file():
        raise InputError(
            f"period {scenario.life.period} of a life goes on from the run before: name its folder as 'from' in the run config, got "
            f"'{since or ''}'"
        )
    return checkpoint.latest(since)


def run_of(folder: Path, run_id: int) -> str:
    """The id of the Flower run that began this folder: nodes keep private adapters under it, and a resumed run needs them."""
    path = folder / "flower.json"
    if not path.exists():
        write_text(path, json.dumps({"run": str(run_id)}))
    return json.loads(path.read_text())["run"]


def note(folder: Path, runtime: GridRuntime, noise: str) -> dict[str, Any]:
    """Keep where the server's noise comes from, whether any of the run's noise is the seed's, and what nodes let out beside releases.

    Where a run is resumed on other nodes, what any of them was and did. Raises `InputError` where ``noise`` is not what the run has.
    """
    path = folder / "flower.json"
    known = json.loads(path.read_text())
    if noise and (before := known.get("noise", noise)) != noise:
        raise InputError(f"noise in the run config must be '{before}', with which this run began, got '{noise}'")
    known.setdefault("noise", noise or ("seed" if all(said.simulated for said in runtime.kept().values()) else "system"))
    known["simulated"] = known.get("simulated", False) or known["noise"] == "seed" or runtime.simulated()
    known["lets"] = sorted({*known.get("lets", ()), *runtime.lets()})
    write_text(path, json.dumps(known))
    return known


def _joint(scenario: Scenario, folder: Path, runtime: GridRuntime, seeded: bool) -> AbstractContextManager[Joint | None]:
    """The server's part in guarantee U: a ledger for all that it releases in its life, the run's own where that protects nobody."""
    place = folder if seeded else home()
    if needed(scenario):
        checkpoint.refuse_without(folder, (str(place / JOINT), PLAN))
    return kept(scenario, runtime.users(), folder, place, scenario_hash(scenario) if seeded else runtime.run, seeded)


def unknown(users: Sequence[str]) -> list[dict[str, Any]]:
    """The users' table where no node lets anything out about them."""
    return [{"user": user, "seen": True, "train": None, "test": None} for user in users]


def _start(scenario: Scenario, folder: Path) -> tuple[State, tuple[str, ...]]:
    """The shared adapter that the next round starts from, and the hashes of the base model and tokenizer that it is for.

    The adapter's shapes are the base model's; the server keeps no base after.
    """
    path, last = folder / "flower.json", checkpoint.latest(folder)
    known = json.loads(path.read_text())
    if last and "origin" in known:
        return last.shared, tuple(known["origin"])
    base = bases.load(scenario.model, "cpu")
    made_on = origin.of_base(base), origin.of_tokenizer(base.tokenizer)
    write_text(path, json.dumps(known | {"origin": made_on}))
    return last.shared if last else split(scenario, base).shared_start(), made_on


def _observe(row: dict[str, Any]) -> None:
    known = row.get("validation") or row.get("validation_before") or {}
    scores = "".join(f", {name} {found['nll']:.4f}" for name, found in known.items() if "nll" in found)
    loss = "" if row["train_loss"] is None else f", loss {row['train_loss']:.4f}"
    log.info("round %d: %d of %d users%s%s", row["round"], row["releases"], row["users"], loss, scores)

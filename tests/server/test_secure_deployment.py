"""A secure sum over a real SuperLink and three SuperNodes, of which one drops out, is the one of a single process to the last bit.

Flower starts a process for each of 18 messages, so this takes a minute or more: `make secure` runs it, and `make test` does not.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from client.node import open_node
from client.private import folder_name
from server import aggregation, checkpoint, rounds
from server.app import run_of
from server.secure import SecureRuntime
from simulations import flower_ray
from simulations.flower_ray import flower_home
from simulations.fused import FusedRuntime
from simulations.parity import ROOT
from tests.server.flower_world import USERS, distance, scenario_of, shift

SECURE = "weights=uniform max_release_norm=1 privacy.secure=true privacy.masking.nodes=3 privacy.masking.threshold=0.6"
ONCE = "rounds=1 evaluate_every=0 controls=[shared]"
pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif("HOMING_DEPLOYMENT" not in os.environ, reason="make secure")]


class Ran(NamedTuple):
    home: Path  # the server's
    nodes: list[Path]
    overrides: str
    said: str


@pytest.fixture(scope="module")
def ran(world: str, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run for all tests: Flower starts a process for every message."""
    folder = tmp_path_factory.mktemp("secure")
    home, nodes, overrides = folder / "home", [folder / f"node{i}" for i in range(3)], f"{world} {SECURE} {ONCE}"
    nodes[1].mkdir()
    (nodes[1] / "sums").write_text("in the way of this node's part of any sum")
    with flower_home(folder) as env:
        env["HOMING_HOME"] = str(home)
        config = {"scenario": "movielens", "overrides": overrides, "out": "x", "nodes": 3}
        done = flower_ray.deploy(ROOT, env, nodes, config)
    return Ran(home, nodes, overrides, done.said)


def test_the_sum_of_the_nodes_that_are_left_is_that_of_one_process(ran: Ran, tmp_path: Path) -> None:
    scenario = scenario_of(ran.overrides)
    node = open_node(scenario, tmp_path / "private")
    start = node.split.shared_start()
    here = rounds.run(
        scenario, SecureRuntime(FusedRuntime(node), scenario, None, {"1": "keys"}), aggregation.build(scenario), start, tmp_path
    )
    node.close()
    there: Any = checkpoint.latest(ran.home / "runs" / "x")
    assert shift(here.shared, start) > 1e-3 and distance(here.shared, there.shared) == 0.0
    for name in ("users", "releases", "tokens", "train_loss", "dropped"):
        assert there.rows[0][name] == here.rows[0][name], name
    assert (there.rows[0]["users"], there.rows[0]["releases"]) == (USERS, USERS - 2)
    assert "is left out" in ran.said


def test_a_node_keeps_no_secret_of_a_sum_that_is_over_and_the_server_none_at_all(ran: Ran) -> None:
    run = folder_name(run_of(ran.home / "runs" / "x", 0))
    for index in (0, 2):
        (part,) = (ran.nodes[index] / "sums" / run).iterdir()
        assert {path.name for path in part.iterdir()} == {"state.json"}
        assert '"seed": ""' in (part / "state.json").read_text()
    assert {path.name for path in ran.home.iterdir()} == {"runs"}
    assert [p.name for p in ran.home.rglob("*.safetensors")] == ["shared-000001.safetensors"]

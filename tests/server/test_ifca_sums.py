"""IFCA over Flower's messages and under secure sums: what one process gives, and nobody's cluster in what the server gets."""

from pathlib import Path

import pytest
import torch

from client.node import open_node
from server import aggregation, rounds
from server import app as server_app
from server.checkpoint import Checkpoint
from server.grid import GridRuntime
from server.secure import SecureRuntime
from server.secure_grid import SecureGridRuntime
from simulations.fused import FusedRuntime
from strategies.base import Runtime, Task
from strategies.privacy import rules
from strategies.schemes.ifca import CHOICE, MEMBERS, slot
from strategies.tree import State
from tests.server.flower_world import NODES, LocalGrid, distance, fused, private, scenario_of, shift

IFCA = ("scheme=ifca weights=uniform rounds=2 personalize=0 shared.targets=[q_proj] shared.layers=1 "
        "shared_training.optimizer=sgd shared_training.lr=1.0")  # fmt: skip
SECURE = f"privacy.secure=true privacy.masking.nodes={NODES} privacy.masking.threshold=0.6"
pytestmark = pytest.mark.usefixtures("home")


def run(overrides: str, runtime: Runtime, start: State, folder: Path) -> Checkpoint:
    return rounds.run(scenario_of(overrides), runtime, aggregation.build(scenario_of(overrides)), start, folder)


def chosen(folder: Path) -> dict[str, int]:
    return {name: int(state[CHOICE]) for name, state in private(folder).items()}


def test_three_nodes_of_flower_find_the_clusters_that_one_process_finds(world: str, home: Path, tmp_path: Path) -> None:
    overrides = f"{world} {IFCA}"
    here, node = fused(scenario_of(overrides), tmp_path / "here")
    start = node.split.shared_start()
    table = node.evaluate(Task(3, here.shared), "test", ("shared_private",))
    node.close()
    page = server_app.run(scenario_of(overrides), LocalGrid(overrides), home / "runs" / "x")
    there = server_app.checkpoint.latest(home / "runs" / "x")
    assert page.is_file() and there is not None
    assert (moved := shift(here.shared, start)) > 1e-3 and distance(here.shared, there.shared) < 5e-5 * moved
    assert chosen(home / "nodes") == chosen(tmp_path / "here") and {*chosen(home / "nodes").values()} == {0, 1}
    again = GridRuntime(LocalGrid(overrides), "77").evaluate(Task(3, there.shared), "test", ("shared_private",))
    for ours, row in zip(table, again, strict=True):
        assert row == pytest.approx(ours, abs=1e-4, nan_ok=True)


@pytest.fixture
def plain(world: str, tmp_path: Path) -> tuple[Checkpoint, State]:
    """The run without masks: its end and its start."""
    here, node = fused(scenario_of(f"{world} {IFCA}"), tmp_path / "plain")
    start = node.split.shared_start()
    node.close()
    return here, start


def test_under_masks_every_clusters_mean_is_what_it_is_without_to_the_grain_of_the_grid(
    world: str, tmp_path: Path, plain: tuple[Checkpoint, State]
) -> None:
    here, start = plain
    overrides = f"{world} {IFCA} {SECURE} max_release_norm=4"
    scenario = scenario_of(overrides)
    assert not list(rules.problems(scenario))
    node = open_node(scenario, tmp_path / "masked" / "private")
    masked = run(overrides, SecureRuntime(FusedRuntime(node), scenario), start, tmp_path / "masked" / "run")
    node.close()
    assert {*chosen(tmp_path / "masked").values()} == {0, 1} and chosen(tmp_path / "masked") == chosen(tmp_path / "plain")
    for j in (0, 1):
        names = [n for n in start if n.startswith("cluster") == (j > 0) and n != MEMBERS and (not j or n.startswith(slot(j)))]
        mine, theirs, begun = ({n: state[n] for n in names} for state in (here.shared, masked.shared, start))
        assert shift(mine, begun) > 1e-3
        assert distance(mine, theirs) < 1e-4
    assert not bool(masked.shared[MEMBERS].any())


def test_over_flower_the_masked_sum_is_that_of_one_process_and_no_node_says_a_cluster(
    world: str, tmp_path: Path, plain: tuple[Checkpoint, State]
) -> None:
    overrides = f"{world} {IFCA} {SECURE} max_release_norm=4"
    scenario, start, grid = scenario_of(overrides), plain[1], LocalGrid(overrides)
    there = run(overrides, SecureGridRuntime(GridRuntime(grid, "x"), scenario), start, tmp_path / "there")
    node = open_node(scenario, tmp_path / "one" / "private")
    here = run(overrides, SecureRuntime(FusedRuntime(node), scenario), start, tmp_path / "one" / "run")
    node.close()
    assert distance(here.shared, there.shared) == 0.0 < shift(here.shared, start)
    for message, reply in grid.sent:
        if "secure" in message.metadata.message_type:
            assert not any(name.startswith("update") or MEMBERS in repr(name) for name in reply.content)


def test_a_cluster_that_nobody_chose_stays_under_masks_to_the_bit(world: str, tmp_path: Path, plain: tuple[Checkpoint, State]) -> None:
    overrides = f"{world} {IFCA} {SECURE} max_release_norm=4 scheme_options.clusters=9"
    scenario = scenario_of(overrides)
    node = open_node(scenario, tmp_path / "many" / "private")
    start = node.split.shared_start()
    (release,) = SecureRuntime(FusedRuntime(node), scenario).train(Task(1, start, cohort=7, everyone=7), node.users())
    node.close()
    mass = release.update[MEMBERS]
    empty = [j for j in range(9) if not float(mass[j])]
    assert empty and mass.sum().item() == pytest.approx(7, abs=1e-4)
    after = aggregation.build(scenario).apply({}, start, iter([release]))[1]
    for name, value in start.items():
        of = int(name[7 : name.index("/")]) if name.startswith("cluster") and name != MEMBERS else 0
        assert name == MEMBERS or of not in empty or torch.equal(after[name], value)
    assert shift(after, start) > 1e-4 and plain[0].round == 2


@pytest.mark.parametrize(("bound", "refused"), [(0.5, True), (1.0, True), (2.0, False)])
def test_a_bound_that_the_membership_alone_fills_is_refused(world: str, bound: float, refused: bool) -> None:
    found = list(rules.problems(scenario_of(f"{world} {IFCA} {SECURE} max_release_norm={bound}")))
    assert any("set max_release_norm=2 or more" in sentence for sentence in found) == refused

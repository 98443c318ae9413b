"""A study is one run per seed, and its table is their mean and spread."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.scenario import Scenario
from server.report import controls
from simulations.study import combine
from tests.simulations.command import call
from tests.simulations.conftest import World

CONTROLS = ("base", "majority", "user_bias", "local_only", "shared", "shared_more_steps", "shared_private", "pooled", "shuffled")


def summary(seed: int, nll: float, gain: tuple[float, float, float]) -> dict[str, Any]:
    """A summary with two rows."""
    rows = {"shared": {"mean": nll, "worst_decile": 2 * nll, "auc": 0.5}, "shared_private": {"mean": nll - 0.1, "worst_decile": nll}}
    gains = {"shared": {"mean": gain[0], "ci95": [gain[1], gain[2]], "auc": {"mean": 0.1, "ci95": [0.0, 0.2]}}}
    return {"seed": seed, "users": 5, "rows": rows, "gains": gains, "helped": 3, "harmed": 1, "seconds": {"train": 1.0, "load": 2.0}}


def test_means_and_spread_over_seeds_by_hand() -> None:
    found = combine(Scenario(), [summary(0, 1.0, (-0.1, -0.2, -0.01)), summary(1, 3.0, (-0.3, -0.7, 0.1))])
    assert found["rows"]["shared"]["nll"] == {"mean": 2.0, "low": 1.0, "high": 3.0}
    assert found["rows"]["shared"]["auc"]["mean"] == 0.5 and "auc" not in found["rows"]["shared_private"]
    assert found["gains"]["shared"]["mean"] == pytest.approx(-0.2)
    assert found["gains"]["shared"]["wins"] == 1, "an interval that holds zero is no win"
    assert found["seconds"] == [3.0, 3.0] and found["seeds"] == [0, 1]


def test_the_command_runs_each_seed_with_every_control_and_does_not_run_it_again(world: World, tmp_path: Path) -> None:
    command = ("study", "movielens", *world.settings, f"controls=[{','.join(CONTROLS)}]", "--seeds", "2", "--out", tmp_path / "x")
    said = call(*command)
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "x" / "study.json").read_text())
    assert found["seeds"] == [0, 1] and list(found["rows"]) == list(CONTROLS)
    pages = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").glob("seed-*/report.html")}
    assert len(pages) == 2
    lines = (tmp_path / "x" / "study.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| *") for line in lines[4:]] == [controls.words(name) for name in CONTROLS]
    again = call(*command)
    assert again.code == 0 and "shared + private" in again.out
    assert all(path.stat().st_mtime_ns == at for path, at in pages.items())

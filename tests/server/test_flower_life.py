"""Periods over Flower, a run for each: the second goes on where the first has ended, on the nodes that keep its private adapters."""

from pathlib import Path

import pytest

from configs.errors import InputError
from server import app as server_app
from server import checkpoint
from simulations.life import periods
from tests.server.flower_world import PLAYED, LocalGrid, distance, private, scenario_of, shift

pytestmark = pytest.mark.usefixtures("home")
LIFE = "life.periods=2 rounds=1 evaluate_every=0 data.users=3 controls=[shared_private] life.keep=ewc"


def test_a_life_of_flower_runs_ends_where_one_in_a_process_ends(world: str, home: Path, tmp_path: Path) -> None:
    scenario = scenario_of(f"{world} {LIFE}")
    for period in periods.live(scenario, tmp_path / "life"):
        runs, overrides = home / "runs", f"{world} {LIFE} life.period={period}"
        since = runs / "1" if period == 2 else None
        server_app.run(scenario_of(overrides), LocalGrid(overrides, PLAYED, run_id=70 + period), runs / f"{period}", since=since)
        here, there = checkpoint.latest(periods.place(tmp_path / "life", period)), checkpoint.latest(runs / f"{period}")
        assert here and there and here.round == there.round == period
        if since and (before := checkpoint.latest(since)):
            assert distance(here.shared, there.shared) <= 5e-5 * shift(here.shared, before.shared)
    ours, theirs = private(tmp_path / "life" / "private"), private(home / "nodes")
    assert ours.keys() == theirs.keys() and max(distance(ours[name], theirs[name]) for name in ours) < 1e-5
    assert len(list((home / "nodes").iterdir())) == 1, "the second run goes on with what the first one's nodes keep"


def test_a_later_period_needs_the_run_before_and_no_other_run_has_one(world: str, home: Path) -> None:
    for settings, since, words in (("life.period=2", None, "name its folder as 'from'"), ("life.period=1", home / "x", "leave it out")):
        overrides = f"{world} {LIFE} {settings}"
        with pytest.raises(InputError, match=words):
            server_app.run(scenario_of(overrides), LocalGrid(overrides, PLAYED), home / "runs" / "no", since=since)
        assert not (home / "runs" / "no" / "scenario.yaml").exists()

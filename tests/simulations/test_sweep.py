"""A sweep tries as often for each line, judges by the validation split alone, and goes on where it was stopped."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from configs.scenario import Scenario
from server.report.files import _ROUND, read_scenario  # pyright: ignore[reportPrivateUsage]
from simulations.compare import plan, space, sweep
from simulations.compare.paired import own_row
from tests.simulations.command import call
from tests.simulations.conftest import World
from tests.simulations.test_compare import study

GOOD, BAD = 0.01, 0.5
SWEEP: dict[str, Any] = {"settings": {"shared_training.lr": [GOOD, BAD]}, "trials": 6}


class Runs:
    """Runs that are not made: the validation split likes GOOD, the test split says ``test``."""

    def __init__(self, folder: Path, test: float = 0.0, most: int = 10**6) -> None:
        self.folder, self.test, self.most, self.made = folder, test, most, list[str]()

    def __call__(self, scenarios: Mapping[str, Scenario]) -> dict[str, Path]:
        for key, scenario in scenarios.items():
            if (self.folder / key).exists():
                continue
            if len(self.made) == self.most:
                raise KeyboardInterrupt
            (self.folder / key).mkdir(parents=True)
            self.made.append(key)
            value = abs(scenario.shared_training.lr - GOOD)
            row = {
                **dict.fromkeys(_ROUND, 1),
                "validation": {own_row(scenario): {"nll": value}},
                "test": {own_row(scenario): {"nll": self.test - value}},
            }
            (self.folder / key / "rounds.jsonl").write_text(json.dumps(row) + "\n")
        return {key: self.folder / key for key in scenarios}


def found(folder: Path, runs: Runs) -> list[list[sweep.Trial]]:
    folder.mkdir(exist_ok=True)
    return sweep.find(plan.read(study(folder, sweep=SWEEP)), runs, folder)


def test_it_finds_the_better_rate_by_equal_trials_and_the_test_split_changes_nothing(tmp_path: Path) -> None:
    one, other = (found(tmp_path / name, Runs(tmp_path / name / "runs", test)) for name, test in (("a", 0.0), ("b", 9.0)))
    assert one == other and [len(trials) for trials in one] == [6, 6]
    chosen = plan.read(study(tmp_path, sweep=SWEEP))
    assert sweep.chosen(chosen, one) == [[f"shared_training.lr={GOOD}"]] * 2
    assert all(s.shared_training.lr == GOOD for row in plan.fixed(chosen, sweep.chosen(chosen, one)).rows for s in row.scenarios)


def test_a_sweep_that_was_stopped_goes_on_and_runs_nothing_twice(tmp_path: Path) -> None:
    whole, stopped, rest = Runs(tmp_path / "a" / "runs"), Runs(tmp_path / "b" / "runs", most=3), Runs(tmp_path / "b" / "runs")
    trials = found(tmp_path / "a", whole)
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path / "b", stopped)
    assert found(tmp_path / "b", rest) == trials and stopped.made + rest.made == whole.made


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "sweep must hold settings"),
        (SWEEP | {"trails": 3}, "did you mean 'trials'?"),
        (SWEEP | {"trials": 0}, "sweep.trials must be a whole number, 1 or more, got 0"),
        (SWEEP | {"metric": "nlll"}, "did you mean 'nll'?"),
        (SWEEP | {"seed": 1}, "sweep.seed 1 is one of the study's seeds"),
        ({"settings": {"rounds": 3}}, "must be a range"),
        ({"settings": {"rounds": {"low": 3, "high": 2}}}, "low must be below high"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_one_sentence(tree: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        space.read("small.yaml", tree, (0, 1))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_drawn_lies_in_its_range_with_the_digits_that_are_shown() -> None:
    spaces = {"a": space.Range(0.0123456, 7.0, True), "n": space.Range(1, 4), "x": ("p", "q")}
    wanted, trials = space.Sweep(spaces, 12, "auc"), list[sweep.Trial]()
    for number in range(wanted.trials):
        drawn = sweep.draw(wanted, trials, number)
        assert 0.0123456 <= drawn["a"] <= 7.0 and drawn["n"] in range(1, 5) and isinstance(drawn["n"], int) and drawn["x"] in "pq"
        assert float(f"{drawn['a']:.3g}") == drawn["a"] or drawn["a"] == 0.0123456
        assert drawn == sweep.draw(wanted, trials, number), "the same again from the same trials"
        trials.append(sweep.Trial(drawn, float("nan") if number == 2 else drawn["a"]))
    assert sweep.best(wanted, trials).value == max(trial.settings["a"] for trial in trials if trial.value == trial.value)
    assert len({str(trial.settings) for trial in trials}) > 6


def test_a_study_with_a_sweep_is_run_with_what_was_found_and_says_so(world: World, tmp_path: Path) -> None:
    settings = {"private.rank": [1, 2], "shared_training.lr": {"low": 0.001, "high": 0.1, "log": True}}
    axes = {"privacy": {"E": "privacy=example"}}
    path = study(tmp_path, world.settings, axes=axes, seeds=[0], sweep={"settings": settings, "trials": 2, "seed": 7})
    answer = call("compare", path, "--out", tmp_path / "s", "--jobs", "1")
    assert answer.code == 0, answer.err
    (line,) = json.loads((tmp_path / "s" / "sweep.json").read_text())["lines"]
    assert len(line["trials"]) == 2 and line["chosen"] == min(line["trials"], key=lambda trial: trial["nll"])["settings"]
    for trial in (tmp_path / "s" / "sweep").iterdir():
        assert read_scenario(trial).seed == 7 and "." not in (trial / "users.csv").read_text().partition("\n")[0], "no test score"
    (scenario,), rate = map(read_scenario, (tmp_path / "s" / "runs").iterdir()), line["chosen"]["shared_training.lr"]
    assert (scenario.private.rank, scenario.shared_training.lr) == (line["chosen"]["private.rank"], rate)
    page, text = ((tmp_path / "s" / f"compare.{kind}").read_text() for kind in ("html", "md"))
    assert f"shared_training.lr={rate}" in text and f"shared_training.lr={rate}" in page
    assert "no epsilon counts it" in text and "no epsilon counts it" in page
    stamps = {place: place.stat().st_mtime_ns for place in (tmp_path / "s").rglob("rounds.jsonl")}
    assert call("compare", path, "--out", tmp_path / "s").code == 0
    assert all(place.stat().st_mtime_ns == at for place, at in stamps.items()), "nothing is run again"


def test_without_optuna_a_sweep_is_refused_and_a_study_without_one_is_not(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    answer = call("compare", study(tmp_path, sweep=SWEEP))
    assert (answer.code, list(here.iterdir())) == (2, []) and "pip install optuna" in answer.err
    assert len(plan.read(study(tmp_path)).rows) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axes": {"lr": {"mine": "shared_training.lr=1"}}}, "mine: shared_training.lr=1 is an axis' own"),
        ({"overrides": ["data.validation=0"]}, "a sweep judges by the validation split"),
        ({"sweep": {"settings": {"shared_training.rl": [1]}}}, "unknown key 'shared_training.rl'"),
        ({"sweep": {"settings": {"private.rank": {"low": 0, "high": 2}}}}, "private.rank must be at least 1, got 0"),
    ],
)
def test_a_sweep_that_a_line_cannot_have_is_refused_when_the_study_is_read(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        plan.read(study(tmp_path, (), **{"sweep": SWEEP} | changes))
    assert said in str(error.value)

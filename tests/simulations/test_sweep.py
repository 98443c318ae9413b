"""A sweep tries as often for each line, judges by the validation split alone, and goes on where it was stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from configs.scenario import Scenario
from server.report.files import _ROUND  # pyright: ignore[reportPrivateUsage]
from simulations.compare import plan, space, sweep
from simulations.compare.paired import own_row
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

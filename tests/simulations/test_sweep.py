"""A sweep finds each line's settings by trials on the validation split, and goes on where it was stopped."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from configs.errors import InputError
from configs.scenario import Scenario
from simulations import trackers
from simulations.compare import plan, space, sweep
from tests.simulations.command import call

COUNTED = ("round", "users", "bytes_up", "bytes_down")  # what a round's row must have
SETTINGS = {"private_training.lr": {"low": 0.0001, "high": 0.1, "log": True}}


def study(folder: Path, **changes: Any) -> Path:
    tree = {
        "scenario": "movielens",
        "axes": {"scheme": {"dual": [], "ditto": "scheme=ditto"}},
        "sweep": {"settings": SETTINGS, "trials": 6} | changes,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class Made:
    """Runs whose validation score is best at a learning rate of 0.01; the test split would say the opposite."""

    def __init__(self, folder: Path, stop: int = 0) -> None:
        self.folder, self.stop, self.seen = folder, stop, list[Scenario]()

    def __call__(self, scenarios: Mapping[str, Scenario]) -> dict[str, Path]:
        for key, scenario in scenarios.items():
            if self.stop and len(self.seen) == self.stop:
                raise KeyboardInterrupt
            self.seen.append(scenario)
            (self.folder / key).mkdir(exist_ok=True)
            off = abs(scenario.private_training.lr - 0.01)
            row = dict.fromkeys(COUNTED, 1) | {"validation": {"shared_private": {"nll": off, "auc": 0.5}}}
            (self.folder / key / "rounds.jsonl").write_text(json.dumps(row) + "\n")
        return {key: self.folder / key for key in scenarios}


def test_every_line_gets_as_many_trials_on_a_seed_of_its_own_and_the_best_is_fixed(tmp_path: Path) -> None:
    asked, made = plan.read(study(tmp_path)), Made(tmp_path)
    trials = sweep.find(asked, made, tmp_path)
    assert [len(of_row) for of_row in trials] == [6, 6] and asked.sweep is not None
    assert all(s.seed == 100 and s.controls == () and s.evaluate_every > 0 for s in made.seen)
    for of_row in trials:
        best = sweep.best(asked.sweep, of_row)
        assert best.value == min(t.value for t in of_row) and len({str(t.settings) for t in of_row}) == 6
    fixed = plan.fixed(asked, sweep.chosen(asked, trials))
    assert [r.scenarios[0].private_training.lr for r in fixed.rows] == [
        sweep.best(asked.sweep, t).settings["private_training.lr"] for t in trials
    ]
    assert [s.seed for s in fixed.rows[0].scenarios] == [0, 1, 2]
    assert json.loads((tmp_path / "sweep.json").read_text())["split"] == "validation"


def test_a_sweep_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    asked = plan.read(study(tmp_path))
    whole = sweep.find(asked, Made(tmp_path), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sweep.find(asked, Made(tmp_path, stop=5), tmp_path)
    assert sweep.find(asked, Made(tmp_path), tmp_path) == whole


def test_a_trial_that_diverges_is_never_best() -> None:
    asked = space.read("x", {"settings": SETTINGS}, (0,))
    assert asked is not None
    trials = [sweep.Trial({"private_training.lr": 0.1}, float("nan")), sweep.Trial({"private_training.lr": 0.2}, 3.0)]
    assert sweep.best(asked, trials).value == 3.0
    with pytest.raises(InputError, match="none of 1 trials has a finite nll"):
        sweep.best(asked, trials[:1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {}}, "sweep must hold settings"),
        ({"settings": {"rounds": {"low": 3, "high": 1}}}, "low must be below high"),
        ({"settings": {"rounds": "many"}}, "must be a range like"),
        ({"settings": {"ronds": [1, 2]}}, "did you mean 'rounds'?"),
        ({"settings": {"scheme": ["dual", "fedsa"]}}, "is an axis' own"),
        ({"trials": 0}, "sweep.trials must be a whole number, 1 or more"),
        ({"seed": 1}, "is one of the study's seeds"),
        ({"metric": "nil"}, "did you mean 'nll'?"),
        ({"tirals": 3}, "did you mean 'trials'?"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_one_sentence(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        plan.read(study(tmp_path, **changes))
    assert said in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------ trackers
@pytest.mark.parametrize(("name", "said"), [("mlflwo", "did you mean 'mlflow'?"), ("wandb", "pip install wandb")])
def test_a_tracker_that_is_not_there_is_said_before_anything_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    answer = call("run", "demo", "--track", name)
    assert answer.code == 2 and said in answer.err and not list(here.iterdir())


def test_a_tracker_is_told_the_scenario_each_round_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    fake = ModuleType("mlflow")
    for what in ("set_experiment", "start_run", "log_params", "log_metrics", "end_run"):
        setattr(fake, what, lambda *args, _what=what, **kwargs: told.append((_what, args, kwargs)))
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setattr(trackers, "summarize", lambda _folder: {"rows": {"shared": {"mean": 0.5}}, "name": "x"})
    with trackers.tracker(["mlflow"], Scenario(rounds=2), tmp_path) as tell:
        for number in (1, 2, 3):
            tell({"round": number, "train_loss": 1.0 / number, "dropped": {}, "validation": {"shared": {"nll": 0.7}}})
    assert [what for what, *_ in told] == [
        "set_experiment",
        "start_run",
        "log_params",
        "log_metrics",
        "log_metrics",
        "log_metrics",
        "end_run",
    ]
    assert told[2][1][0]["shared.rank"] == Scenario().shared.rank
    assert told[3][1][0] == {"train_loss": 1.0, "validation/shared/nll": 0.7} and told[4][2] == {"step": 2}
    assert told[5][1][0] == {"final/rows/shared/mean": 0.5} and told[6][1] == ("FINISHED",)

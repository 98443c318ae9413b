"""A tracker is told the scenario, each round and the end; one that is not there is refused before anything is written."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from simulations.trackers import TRACKERS
from tests.simulations.command import ROUNDS, call
from tests.simulations.conftest import World

TRAINED = "controls=[shared,shared_private,pooled]"  # pooled trains rounds of its own


class Writer:
    """What TensorBoard's writer is asked; everything is kept in ``told``."""

    def __init__(self, told: list[tuple[str, Any]]) -> None:
        self.told = told

    def add_text(self, _name: str, text: str) -> None:
        self.told.append(("config", text))

    def add_scalar(self, name: str, _value: float, step: int) -> None:
        self.told.append(("log", ({name: _value}, step)))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.told.append(("close", None))


def fake(name: str, told: list[tuple[str, Any]]) -> ModuleType:
    """A module that keeps what it is told."""
    module: Any = ModuleType(TRACKERS[name].module)

    def log(numbers: dict[str, float], step: int = 0) -> None:
        told.append(("log", (dict(numbers), step)))

    def init(config: dict[str, Any], **_rest: Any) -> SimpleNamespace:
        told.append(("config", config))
        summary = SimpleNamespace(update=log)
        return SimpleNamespace(log=log, summary=summary, finish=lambda **_how: told.append(("close", None)))

    module.SummaryWriter = lambda _place: Writer(told)
    module.set_experiment = module.start_run = lambda *_a, **_k: None
    module.log_params, module.log_metrics = (lambda config: told.append(("config", config))), log
    module.end_run = lambda _how: told.append(("close", None))
    module.init = init
    return module


@pytest.mark.parametrize("name", TRACKERS)
def test_each_is_told_the_scenario_every_round_and_the_end(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, Any]] = []
    monkeypatch.setitem(sys.modules, TRACKERS[name].module, fake(name, told))
    answer = call("run", "movielens", *world.settings, TRAINED, "--out", tmp_path / "run", "--track", name)
    assert answer.code == 0, answer.err
    assert [what for what, _ in told].count("config") == 1 and told[0][0] == "config" and told[-1][0] == "close"
    assert "fedavgm" in str(told[0][1])
    logged = [value for what, value in told if what == "log"]
    rounds = [step for numbers, step in logged if "train_loss" in numbers]
    assert rounds == [*range(1, ROUNDS + 2)], "each of the run's own once, the last one too, and none of a control's"
    assert any(key.startswith("final/rows/") for numbers, _ in logged for key in numbers)


@pytest.mark.parametrize("name", TRACKERS)
def test_one_that_is_not_installed_is_refused_before_anything_is_written(
    name: str, here: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, TRACKERS[name].module, None)
    answer = call("run", "movielens", *world.settings, "--track", name)
    assert answer.code == 2 and f"pip install {TRACKERS[name].package}" in answer.err and not list(here.iterdir())

"""Where a run's numbers can be followed beside its own report: TensorBoard, MLflow, Weights & Biases, Trackio. None is required.

A tracker is told the scenario once, each round's row as numbers, and at the end the numbers of `summary.json`. It sees means over users
and counters, as `rounds.jsonl` holds them: no guarantee covers these, and Weights & Biases sends them to its servers unless
WANDB_MODE says offline. Where a tracker keeps them is said by its own variables: MLFLOW_TRACKING_URI, WANDB_DIR, TRACKIO_DIR.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import InputError, unknown
from configs.scenario import Scenario, label, scenario_hash, to_yaml
from server import checkpoint
from server.report.summary import summarize
from server.rounds import Observer, last_round

PROJECT = "homing"
Numbers = dict[str, float]


class Tracker(NamedTuple):
    """What is done with a run's numbers: after each round, at the end of a run, and when it is left, ended or not."""

    log: Callable[[Numbers, int], Any]  # (numbers by name, round)
    end: Callable[[Numbers, int], Any]  # (numbers of the whole run by name, last round)
    close: Callable[[bool], Any]  # (whether the run has come to its end)


class Known(NamedTuple):
    """A tracker that can be named."""

    module: str  # that must be there
    package: str  # that brings it
    open: Callable[[Scenario, Path], Tracker]


def leaves(tree: Any, between: str, name: str = "") -> dict[str, Any]:
    """A nested mapping as one of what stands at its ends: ``{"a/b": value}``."""
    if not isinstance(tree, Mapping):
        return {name: tree}
    inside = (leaves(inner, between, f"{name}{between}{part}" if name else str(part)) for part, inner in tree.items())
    return {key: value for found in inside for key, value in found.items()}


def numbers_of(tree: Mapping[str, Any]) -> Numbers:
    """What is a finite number in a nested mapping, by its path; everything else is left out."""
    found = leaves(tree, "/").items()
    return {key: float(x) for key, x in found if isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)}


def refuse(names: Sequence[str]) -> None:
    """Raise `InputError` for a tracker that is not known or not installed."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        try:
            importlib.import_module(TRACKERS[name].module)
        except ImportError:
            raise InputError(f"--track {name}: {name} is not installed: pip install {TRACKERS[name].package}") from None


@contextmanager
def tracker(names: Sequence[str], scenario: Scenario, folder: Path) -> Iterator[Observer]:
    """Yield an observer of the scenario's rounds that tells every tracker named; at the end they get the summary of ``folder``.

    Rounds that controls train come after the run's own and are left out. A tracker is opened with the first round that it is told of,
    so a run that is refused leaves nothing.
    """
    last = checkpoint.latest(folder) if names else None
    left = last_round(scenario) - (last.round if last else 0)
    told: list[Tracker] = []
    with ExitStack() as stack:

        def opened() -> list[Tracker]:
            if not told:
                told.extend(stack.enter_context(_opened(TRACKERS[name], scenario, folder)) for name in names)
            return told

        def observe(row: dict[str, Any]) -> None:
            nonlocal left
            left -= 1
            for one in opened() if left >= 0 else ():
                one.log(numbers_of({key: value for key, value in row.items() if key != "round"}), row["round"])

        yield observe
        finals = numbers_of({"final": summarize(folder)}) if names else {}
        for one in opened():
            one.end(finals, last_round(scenario))


def both(first: Observer, second: Observer) -> Observer:
    """Tell two observers of each round."""

    def observe(row: dict[str, Any]) -> None:
        first(row)
        second(row)

    return observe


@contextmanager
def _opened(known: Known, scenario: Scenario, folder: Path) -> Iterator[Tracker]:
    one, whole = known.open(scenario, folder), False
    try:
        yield one
        whole = True
    finally:
        one.close(whole)


def _tensorboard(scenario: Scenario, folder: Path) -> Tracker:
    """Event files in the run's own folder."""
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))
    writer.add_text("scenario", f"```\n{to_yaml(scenario)}```")

    def log(numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, log, lambda _whole: writer.close())


def _mlflow(scenario: Scenario, _folder: Path) -> Tracker:
    """A run of the experiment ``homing``. A run that goes on is a second one there."""
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment(PROJECT)
    mlflow.start_run(run_name=label(scenario), tags={"study": scenario.name})
    mlflow.log_params(_config(scenario))

    def log(numbers: Numbers, step: int) -> None:
        mlflow.log_metrics(numbers, step=step)

    return Tracker(log, log, lambda whole: mlflow.end_run("FINISHED" if whole else "KILLED"))


def _wandb(scenario: Scenario, folder: Path) -> Tracker:
    """A run of the project ``homing``, by the scenario's digits: one that goes on is the same one there."""
    wandb = importlib.import_module("wandb")
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(project=PROJECT, id=scenario_hash(scenario), name=label(scenario), group=scenario.name, resume="allow",
                     config=_config(scenario), dir=str(folder))  # fmt: skip
    return Tracker(
        lambda numbers, step: run.log(numbers, step=step),
        lambda numbers, _step: run.summary.update(numbers),
        lambda whole: run.finish(exit_code=0 if whole else 1),
    )


def _trackio(scenario: Scenario, _folder: Path) -> Tracker:
    """A run of the project ``homing``, by its name: one that goes on is the same one there."""
    trackio = importlib.import_module("trackio")
    run = trackio.init(
        project=PROJECT, name=label(scenario), group=scenario.name, resume="allow", config=_config(scenario), embed=False
    )

    def log(numbers: Numbers, step: int) -> None:
        run.log(numbers, step=step)

    return Tracker(log, log, lambda _whole: run.finish())


def _config(scenario: Scenario) -> dict[str, Any]:
    """The scenario's settings by their names: ``shared.rank``."""
    return leaves(dataclasses.asdict(scenario), ".")


TRACKERS = {
    "tensorboard": Known("torch.utils.tensorboard", "tensorboard", _tensorboard),
    "mlflow": Known("mlflow", "mlflow", _mlflow),
    "wandb": Known("wandb", "wandb", _wandb),
    "trackio": Known("trackio", "trackio", _trackio),
}

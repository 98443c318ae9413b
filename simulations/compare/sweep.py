"""Find a study's settings before it is run: for each line by itself, with the same number of trials, never on the test split.

A trial is a run of the line's scenario under the sweep's seed, which is none of the study's, without any control: nothing is scored on
the test split. It is judged by the validation split after its last round, users counting alike, in the line's own row. Settings are
drawn by Optuna's TPE (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011), each trial by a sampler that its
number seeds; so a sweep that was stopped goes on as if it had not been: trials that are there are told again, not run again.

Users of the sweep's seed may be users of the study's, and a choice made on their data is a function of it: no epsilon counts it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.scenario import Scenario, load, scenario_hash
from server.report.files import read_rounds, write_text
from server.rounds import last_round
from simulations.compare.paired import own_row
from simulations.compare.plan import Plan, Row
from simulations.compare.space import HIGHER, Range, Sweep, assigned, rounded

Run = Callable[[Mapping[str, Scenario]], Mapping[str, Path]]  # scenarios by their hash -> where each of them has been run
Drawn = dict[str, Any]  # name of a setting -> its value


@dataclass(frozen=True)
class Trial:
    """Settings of one trial, and what they come to on the validation split: not finite where training has diverged."""

    settings: Drawn
    value: float


def refuse() -> None:
    """Raise `InputError` where Optuna is not installed."""
    try:
        import optuna  # noqa: F401 - whether it is there is all that is asked
    except ImportError:
        raise InputError("a study's sweep needs Optuna, which is not installed: pip install optuna") from None


def find(plan: Plan, run: Run, folder: Path) -> list[list[Trial]]:
    """Every line's trials, in order; all are written to ``folder/sweep.json``. ``run`` makes those of one turn side by side."""
    refuse()
    assert plan.sweep
    sweep, trials = plan.sweep, [list[Trial]() for _ in plan.rows]
    for number in range(sweep.trials):
        drawn = [draw(sweep, of_row, number) for of_row in trials]
        scenarios = [scenario_of(row, sweep, settings) for row, settings in zip(plan.rows, drawn, strict=True)]
        places = run({scenario_hash(scenario): scenario for scenario in scenarios})
        for of_row, settings, scenario in zip(trials, drawn, scenarios, strict=True):
            of_row.append(Trial(settings, judged(places[scenario_hash(scenario)], scenario, sweep.metric)))
        write_text(folder / "sweep.json", to_json(plan, trials))
    return trials


def best(sweep: Sweep, trials: Sequence[Trial]) -> Trial:
    """The trial with the best value, the first of equals. Raises `InputError` where none has a finite one."""
    finite = [trial for trial in trials if math.isfinite(trial.value)]
    if not finite:
        raise InputError(f"sweep: none of {len(trials)} trials has a finite {sweep.metric} on the validation split")
    return (max if HIGHER[sweep.metric] else min)(finite, key=lambda trial: trial.value)


def chosen(plan: Plan, trials: Sequence[Sequence[Trial]]) -> list[list[str]]:
    """The settings found for each line, as ``key=value``."""
    assert plan.sweep
    return [[assigned(name, value) for name, value in best(plan.sweep, of_row).settings.items()] for of_row in trials]


def draw(sweep: Sweep, before: Sequence[Trial], number: int) -> Drawn:
    """The settings of a line's trial: a function of the sweep, the trials before it and its number."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=(sweep.seed * 10_000 + number) % 2**32)
    study = optuna.create_study(direction="maximize" if HIGHER[sweep.metric] else "minimize", sampler=sampler)
    spaces = {name: _distribution(space) for name, space in sweep.settings.items()}
    worst = -math.inf if HIGHER[sweep.metric] else math.inf
    for trial in before:
        value = trial.value if math.isfinite(trial.value) else worst
        study.add_trial(optuna.trial.create_trial(params=trial.settings, distributions=spaces, value=value))
    found = study.ask(spaces).params
    return {name: rounded(found[name], space) if isinstance(space, Range) else found[name] for name, space in sweep.settings.items()}


def scenario_of(row: Row, sweep: Sweep, settings: Drawn) -> Scenario:
    """A trial's scenario: the row's with these settings, under the sweep's seed, validated after its last round, without controls."""
    found = load(row.begin, [*row.settings, *(assigned(name, value) for name, value in settings.items())])
    found = replace(found, seed=sweep.seed, name="sweep", controls=())
    return replace(found, evaluate_every=last_round(found))


def judged(place: Path, scenario: Scenario, metric: str) -> float:
    """What a trial's run comes to on the validation split. Raises `InputError` where its task has no such metric."""
    last = read_rounds(place)[-1]
    scores = last.get("validation", {}).get(own_row(scenario), {})
    if metric not in scores:
        known = f" (known: {', '.join(sorted(scores))})" if scores else ""
        raise InputError(f"sweep.metric '{metric}' is not scored on the validation split of {place}{known}")
    return float(scores[metric])


def to_json(plan: Plan, trials: Sequence[Sequence[Trial]]) -> str:
    """All trials of all lines, with the best of each so far."""
    assert plan.sweep
    sweep, lines = plan.sweep, []
    for row, of_row in zip(plan.rows, trials, strict=True):
        finite = [trial for trial in of_row if math.isfinite(trial.value)]
        lines.append({
            "labels": dict(zip(plan.axes, row.labels, strict=True)),
            "chosen": best(sweep, of_row).settings if finite else None,
            "trials": [{"settings": t.settings, sweep.metric: t.value if math.isfinite(t.value) else None} for t in of_row],
        })  # fmt: skip
    return json.dumps({"metric": sweep.metric, "split": "validation", "seed": sweep.seed, "lines": lines}, indent=1) + "\n"


def _distribution(space: Range | tuple[Any, ...]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(space, Range):
        return CategoricalDistribution(space)
    if isinstance(space.low, int) and isinstance(space.high, int):
        return IntDistribution(space.low, space.high, log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)

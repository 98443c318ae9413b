"""A study from its file to its page: settings found where it asks for that, runs made, lines written."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from configs.scenario import Scenario
from simulations.compare import page, runs, sweep, table
from simulations.compare.plan import Plan, fixed


def compare(plan: Plan, folder: Path, jobs: int, track: Sequence[str], say: Callable[[str], None]) -> Table:
    """Make or finish a study in ``folder``; returns its table for a terminal. ``jobs``: as in `runs.run`."""
    tuned: list[sweep.Trial] = []
    if plan.sweep:
        trials = sweep.find(plan, _trials(plan, folder, jobs, say), folder)
        tuned = [sweep.best(plan.sweep, of_row) for of_row in trials]
        plan = fixed(plan, sweep.chosen(plan, trials))
    say(f"{plan.name}: {len(plan.rows)} lines, {len(plan.seeds)} seeds, {len(plan.runs())} runs, in {folder}")
    places = runs.run(plan.runs(), folder / "runs", jobs, lambda what, at, of: say(f"{at} of {of}: {what}"), track)
    lines = table.found(plan, places, tuned)
    page.write(plan, lines, folder)
    return table.table(plan, lines)


def _trials(plan: Plan, folder: Path, jobs: int, say: Callable[[str], None]) -> sweep.Run:
    """Make each turn's trials side by side, in ``folder/sweep``. Their pages are not kept: they hold no scores."""
    turn = 0

    def run(scenarios: Mapping[str, Scenario]) -> dict[str, Path]:
        nonlocal turn
        turn += 1
        say(f"{plan.name}, sweep: trial {turn} of {plan.sweep.trials if plan.sweep else 0} of each line")
        places = runs.run(scenarios, folder / "sweep", jobs)
        for place in places.values():
            (place / "report.html").unlink(missing_ok=True)
        return places

    return run

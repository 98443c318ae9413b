"""``python -m simulations synthetic``."""

from pathlib import Path
from typing import Annotated

import typer

from simulations import usage


def synthetic(
    rounds: Annotated[int, typer.Option(help="Of every federation.", min=1)] = 20,
    seeds: Annotated[int, typer.Option(help="So many drawings of the task, from 0 on.", min=1)] = 3,
    only: Annotated[str, typer.Option(help="Run the one aggregator of that name.")] = "",
    out: Annotated[Path, typer.Option(help="The study's folder.")] = Path("studies") / "synthetic",
) -> None:
    """Hold every aggregator against a task whose ideal aggregate and best adapter are known in closed form.

    Error of aggregation and excess loss against rounds, skew, users, rank, sizes and an attacker; minutes, without any model. Theory's
    expectations are checked on the numbers, each with a control that must fail. Exit code 1 where one does not hold.
    """
    from rich.progress import Progress

    from simulations.synthetic import expectations, page, suite, table

    suite.chosen(only)
    out.mkdir(parents=True, exist_ok=True)  # said now, not after minutes
    console = usage.console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("aggregators", total=None)
        found = suite.run(rounds, seeds, only, lambda name, at, of: bar.update(task, description=name, completed=at, total=of))
    verdicts = expectations.verdicts(found)
    table.write(found, verdicts, out)
    place = page.write(found, verdicts, out)
    console.print(table.table(found))
    for verdict in (failed := expectations.failures(verdicts)):
        console.print(f"failed: {verdict['name']}: {verdict['reason']}", markup=False, highlight=False, soft_wrap=True)
    measured = sum(verdict["holds"] is not None for verdict in verdicts)
    console.print(f"expectations: {measured - len(failed)} of {measured} hold\npage: {place}", markup=False, highlight=False)
    console.print(f"table: {out / 'synthetic.md'}, {out / 'synthetic.json'}", markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)

"""``python -m simulations forget RUN USER``."""

from pathlib import Path
from typing import Annotated

import typer

from simulations import usage


def forget(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a life's.", metavar="RUN")],
    users: Annotated[list[str], typer.Argument(help="Who is to be forgotten.", metavar="USER...")],
    how: Annotated[str, typer.Option("--with", help="replay, continue or leave: see 'list'.", metavar="NAME")] = "replay",
    examples: Annotated[
        str, typer.Option(help="Of the one user only these: numbers by their place in time, as 0,3, or a file of them.", metavar="IDS")
    ] = "",
    option: Annotated[list[str] | None, typer.Option("--option", help="Of the way, e.g. rounds=10.", metavar="NAME=NUMBER")] = None,
    out: Annotated[Path | None, typer.Option(help="The new run's folder; by default beside RUN.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Make a run that never had them, too, and compare.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Remove RUN once the new run is whole.")] = False,
) -> None:
    """Make a run in which users, or examples of one, have not been there. RUN stays as it was, unless --purge.

    What was cut off goes on: give the same command again. OUT/forget.json says what a membership test finds before and after.
    """
    from simulations.forget import plan, report, suite
    from simulations.migrate.plan import chosen

    usage.quiet()
    asked = plan.plan(run, users, examples, how, chosen(option or []), out)
    found = suite.forget(asked, check, usage.say)
    for line in report.words(found):
        usage.say(line)
    if found["membership"]["before"]:
        usage.console().print(report.table(found))
    if purge:
        suite.purge(asked)
        usage.say(f"{run} is removed")
    usage.say(f"run: {asked.out}\nfigures: {asked.out / plan.FILE}")

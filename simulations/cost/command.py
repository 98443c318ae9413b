"""``python -m simulations cost``."""

from pathlib import Path
from typing import Annotated

import typer

from simulations import usage


def cost(
    only: Annotated[str, typer.Option(help="Measure the one aggregator of that name.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, seconds; shows that it works, and judges no growth.")] = False,
    out: Annotated[Path, typer.Option(help="Where the table goes.")] = Path("studies") / "cost",
) -> None:
    """Measure what a round costs the server, of every aggregator: time against users, and memory over a stream of releases.

    Minutes, without any model. Exit code 1 where the work grows faster than users and an aggregator does not say so, or the other way
    round, and where one that needs only the sum takes more than 1 GiB for 1,000 releases of 5 MiB.
    """
    from simulations.cost import suite

    suite.chosen(only)
    out.mkdir(parents=True, exist_ok=True)  # said now, not after minutes
    size, console = suite.QUICK if quick else suite.Size(), usage.console()
    found = suite.run(size, only, lambda so_far: suite.write(so_far, size, out))
    console.print(suite.markdown(found, size), markup=False, highlight=False, soft_wrap=True)
    console.print(f"table: {out / 'cost.md'}, {out / 'cost.json'}", markup=False, highlight=False, soft_wrap=True)
    failed = [] if quick else list(suite.failures(found))
    for sentence in failed:
        console.print(f"failed: {sentence}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)

"""``python -m simulations bench``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from simulations import usage


def bench(
    only: Annotated[str, typer.Option(help="Run the one benchmark that a figure belongs to.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, seconds; shows that it works, not how fast.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show the costliest operators of a fused step instead.")] = False,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("bench.json"),
) -> None:
    """Measure speed against plain PEFT and against Flower's Ray simulation; both sides must compute the same."""
    from simulations.bench import suite

    usage.quiet()
    if profile:
        usage.say(suite.operators(only, quick))
        return
    busy = os.getloadavg()[0]
    found = suite.run(only, quick, lambda so_far: suite.write(so_far, out))
    usage.console().print(suite.table(found, quick, busy))
    usage.say(f"figures: {out}")

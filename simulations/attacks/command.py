"""``python -m simulations attack``."""

from pathlib import Path
from typing import Annotated

import typer

from configs.scenario import load
from simulations import usage


def attack(
    scenario: usage.SCENARIO = usage.DEFAULT,
    overrides: usage.OVERRIDES = None,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("attacks.json"),
) -> None:
    """Read users' data out of what would leave a node, without noise and under guarantee E.

    Of SCENARIO the model, the data and the delta of guarantee E count; the adapters and the training are the attacks' own.
    """
    from simulations.attacks import suite
    from simulations.training import open_world

    scenario, overrides = usage.or_default(scenario, overrides, usage.DEFAULT)
    usage.quiet()
    chosen = load(scenario, overrides)
    found = suite.run(chosen, open_world(chosen), lambda so_far: suite.write(so_far, out))
    usage.console().print(suite.table(found))
    usage.say(f"figures: {out}")

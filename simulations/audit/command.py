"""``python -m simulations audit``."""

from pathlib import Path
from typing import Annotated

import typer

from configs.scenario import load
from simulations import usage


def audit(
    scenario: usage.SCENARIO = "audit",
    overrides: usage.OVERRIDES = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny random model and made-up users: seconds.")] = False,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("audit.json"),
) -> None:
    """Attack what a scenario's guarantees promise, with canaries, and bound from below the epsilon that is really lost.

    The same without noise must show more than is claimed, or the attack is too weak to say anything. Exit code 1 where an audit fails.
    """
    from simulations.audit import suite

    scenario, overrides = usage.or_default(scenario, overrides, "audit")
    usage.quiet()
    found = suite.run(load(scenario, overrides), quick, lambda so_far: suite.write(so_far, out))
    usage.console().print(suite.table(found, quick))
    for sentence in (failed := list(suite.failures(found))):
        usage.say(f"failed: {sentence}")
    usage.say(f"figures: {out}")
    if failed:
        raise typer.Exit(1)

"""``python -m simulations scale``."""

from typing import Annotated

import typer
from rich.table import Table

from configs.errors import InputError
from simulations import usage


def scale(
    devices: Annotated[int, typer.Option(help="How many devices there are, one user each.", min=1)] = 1_000_000,
    numbers: Annotated[int, typer.Option(help="Numbers of the shared adapter.", min=1)] = 1_000_000,
    goal: Annotated[int, typer.Option(help="Answers that a round needs.", min=1)] = 1_000,
    tokens: Annotated[int, typer.Option(help="Tokens that a device trains in a round.", min=1)] = 20_000,
    deadline: Annotated[float, typer.Option(help="Seconds that a round may take.", min=1.0)] = 1_800.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", min=0)] = 0,
) -> None:
    """Simulate a day of a federation of very many devices: rounds, bytes, memory. No model is loaded; assumptions are printed."""
    from simulations.scale import day

    if goal > devices:
        raise InputError(f"--goal must be at most --devices = {devices}, got {goal}")
    assumed = day.Assumed(devices, numbers, goal, tokens=tokens, deadline=deadline)
    table = Table("assumed", "", box=None)
    for name in ("devices", "numbers", "goal", "over", "tokens", "start", "drop", "deadline", "between", "swing", "width"):
        table.add_row(name, f"{getattr(assumed, name):g}")
    for kind in assumed.classes:
        said = f"{kind.share:.0%} of devices, {kind.speed:g} tokens/s, {kind.down:g} / {kind.up:g} Mbit/s"
        table.add_row(kind.name, f"{said}, there {kind.best:.0%} at best")
    table.add_row("hours from UTC", ", ".join(f"{zone:+g}: {share:.0%}" for zone, share in assumed.zones))
    usage.console().print(table)
    found = Table("a day", "", box=None)
    for name, value in day.totals(assumed, day.rounds(assumed, seed)).items():
        found.add_row(name, f"{value:.4g}")
    for name, value in day.memory(assumed).items():
        found.add_row(f"  MB: {name}", f"{value:.4g}")
    usage.console().print(found)

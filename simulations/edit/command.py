"""``python -m simulations edit RUN USER --file edits.jsonl``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from configs.errors import InputError
from simulations import usage
from simulations.store import KEY


class Edits(usage.Commands):
    """The commands; where the first word is none of them it is a run, to which edits are added."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the first word names, else ``add``."""
        named = not args or args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if named else ["add", *args])


app = typer.Typer(
    cls=Edits,
    help="Correct what one user's model says: at once, at home, without training. 'edit RUN USER --file FILE' adds edits.",
    epilog=usage.examples("edit runs/demo-0a1b2c3d4e5f 405 --file edits.jsonl", "edit undo runs/demo-0a1b2c3d4e5f 405 3f2a9c01"),
    rich_markup_mode="rich",
)
RUN = Annotated[Path, typer.Argument(help="A run's folder, or a life's.", metavar="RUN")]
USER = Annotated[str, typer.Argument(help="A user of it.", metavar="USER")]
LAYER = Annotated[int, typer.Option(help="Whose last linear module is changed; -1 is the top one.")]


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Show the help where no command is named."""
    if context.invoked_subcommand is None:
        context.get_help()


@app.command(epilog=usage.examples("edit runs/demo-0a1b2c3d4e5f 405 --file edits.jsonl --with finetune --option steps=50"))
def add(
    run: RUN,
    user: USER,
    file: Annotated[Path, typer.Option(help="Edits, one JSON object a line: prompt and answer, or item or genre and like.")],
    how: Annotated[str, typer.Option("--with", help="rank_one or finetune: see 'list'.", metavar="NAME")] = "rank_one",
    option: Annotated[list[str] | None, typer.Option("--option", help="Of the editor.", metavar="NAME=NUMBER")] = None,
    layer: LAYER = -1,
    key: KEY = "",
) -> None:
    """Add edits to those of a user that stand. One of the same prompt takes the place of an earlier one.

    No server and no other user has part in it. An edit is not noised: it is used by 'export' and never trained with.
    """
    from simulations.edit import make
    from simulations.migrate.plan import chosen

    usage.quiet()
    found, seconds = make.add(run, user, file, how, chosen(option or []), layer, key)
    for each in found:
        held = "" if each.holds else "; it does not hold: try more steps, or --layer, or take it back by 'edit undo'"
        usage.say(f"{each.edit.id}: {each.edit.answer} at {each.before:.3f} -> {each.after:.3f}{held}")
    usage.say(f"{len(found)} edits in {seconds:.1f} s")


@app.command(name="list", epilog=usage.examples("edit list runs/demo-0a1b2c3d4e5f 405"))
def list_(run: RUN, user: USER, key: KEY = "") -> None:
    """List a user's edits that stand."""
    from simulations.edit import make

    usage.console().print(make.listing(run, user, key))


@app.command(epilog=usage.examples("edit undo runs/demo-0a1b2c3d4e5f 405 3f2a9c01"))
def undo(
    run: RUN, user: USER, name: Annotated[str, typer.Argument(help="Which, as 'edit list' shows it.", metavar="ID")], key: KEY = ""
) -> None:
    """Take an edit back. The model is then what it would be without it, bit by bit."""
    from simulations.edit import make

    usage.say(make.undo(run, user, name, key))


@app.command(
    epilog=usage.examples("edit measure runs/demo-0a1b2c3d4e5f", "edit measure life data.users=10 life.periods=2 --seeds 3 --out x")
)
def measure(
    what: Annotated[str, typer.Argument(help="A run's folder; or a scenario with life.periods.", metavar="RUN | SCENARIO")],
    overrides: usage.OVERRIDES = None,
    out: Annotated[Path | None, typer.Option(help="Of a scenario: the folder to write.")] = None,
    users: Annotated[int, typer.Option(help="So many users, the first by name.", min=1)] = 10,
    each: Annotated[int, typer.Option(help="So many edits of each user and kind.", min=1)] = 3,
    seeds: Annotated[int, typer.Option(help="Of a scenario: under so many seeds, from its own on.", min=1)] = 1,
    part: Annotated[str, typer.Option(help="Which split the films are from: test or validation.")] = "test",
    layer: LAYER = -1,
) -> None:
    """Measure every editor and none on films: efficacy, generality, locality, seconds. Of a life also after one period more.

    Nothing is stored but FOLDER/edit.json. Users' scores in it are the simulation's: a deployment has no such command.
    """
    from simulations.edit import study

    if part not in ("test", "validation"):
        raise InputError(f"--part must be test or validation, got '{part}'")
    usage.quiet()
    found, path = study.study(what, overrides or [], out, study.Plan(users, each, part, layer), seeds)
    usage.console().print(study.table(found))
    usage.say(f"figures: {path}")

"""The commands on private stores: ``python -m simulations store COMMAND``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from configs.errors import InputError
from configs.home import home as default
from simulations import usage

app = typer.Typer(
    cls=usage.Commands,
    help="What a node keeps of its users: list it, check it, copy it, bring it back, forget a user, or seal it with a key.",
    epilog=usage.examples("store list", "store backup monday.tar", "store forget ann --key /etc/homing/store.key"),
    rich_markup_mode="rich",
)
HOME = Annotated[Path | None, typer.Option("--home", help="A node's home, or a run's folder; else $HOMING_HOME.", metavar="FOLDER")]
KEY = Annotated[
    str,
    typer.Option("--key", help="What stores are sealed with: a file, or keyring:NAME.", envvar="HOMING_STORE_KEY", metavar="KEY"),
]
USER = Annotated[str, typer.Argument(help="A user, as 'store list' shows them.", metavar="USER")]
ARCHIVE = Annotated[Path, typer.Argument(help="The one file of a copy.", metavar="FILE")]


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Show the help where no command is named."""
    if context.invoked_subcommand is None:
        context.get_help()


@app.command(name="list", epilog=usage.examples("store list", "store list --home runs/demo-0a1b2c3d4e5f"))
def list_(home: HOME = None, key: KEY = "") -> None:
    """List users, the rounds whose versions are kept, and what they were made on."""
    from simulations import stores

    usage.console().print(stores.listing(home or default(), key))


@app.command(epilog=usage.examples("store verify"))
def verify(home: HOME = None, key: KEY = "") -> None:
    """Read every file and compare its digest. Exit code 1 where one is damaged: each is named, and nothing is changed."""
    from simulations import stores

    wrong, all_ = stores.damage(home or default(), key)
    _say((*(f"damaged: {sentence}" for sentence in wrong), all_))
    if wrong:
        raise typer.Exit(1)


@app.command(epilog=usage.examples("store backup monday.tar", "store backup monday.tar --home /var/lib/homing"))
def backup(archive: ARCHIVE, home: HOME = None, key: KEY = "") -> None:
    """Copy all stores and ledgers into one new file, also while a node works.

    What is sealed stays sealed in it: keep the key elsewhere. Whoever is forgotten later is still in it.
    """
    from simulations import stores

    _say(stores.backup(home or default(), archive, key))


@app.command(epilog=usage.examples("store restore monday.tar", "store restore monday.tar --key new.key --old-key old.key"))
def restore(
    archive: ARCHIVE,
    home: HOME = None,
    key: KEY = "",
    old_key: Annotated[str, typer.Option(help="The key that the copy was made under, if it is another one.", metavar="KEY")] = "",
) -> None:
    """Bring back from a copy what is older, missing or damaged here. What is newer here makes it refuse, before anything is changed.

    Ledgers only grow: what is booked here stays booked. Users who were forgotten since the copy was made are left out.
    """
    from simulations import stores

    _say(stores.restore(archive, home or default(), key, old_key))


@app.command(epilog=usage.examples("store forget ann", "store forget ann --home /var/lib/homing --key keyring:store"))
def forget(user: USER, home: HOME = None, key: KEY = "") -> None:
    """Remove all that the stores hold of a user, search for what may be left, and write a receipt that says what it does not cover.

    The ledgers keep the user's lines: what has left stays spent. Take the user out of the node's data first, or they begin anew.
    """
    from simulations import stores

    _say(stores.forget(home or default(), user, key))


@app.command(epilog=usage.examples("store revert ann", "store revert ann --run nodes/x-7d1f0a2b"))
def revert(
    user: USER,
    run: Annotated[str, typer.Option(help="The store, where the user is in more than one.", metavar="STORE")] = "",
    home: HOME = None,
    key: KEY = "",
) -> None:
    """Drop a user's newest version, so that the one before is used: what to do where the newest is damaged and there is no copy."""
    from simulations import stores

    _say([stores.revert(home or default(), user, run, key)])


@app.command(epilog=usage.examples("store key /etc/homing/store.key", "store key keyring:homing"))
def key(where: Annotated[str, typer.Argument(help="A file that is not there yet, or keyring:NAME.", metavar="KEY")]) -> None:
    """Make a key to seal stores with, which a node takes where its config has store-key. What is sealed is lost without it."""
    from simulations import stores

    _say(stores.key(where))


@app.command(epilog=usage.examples("store rekey new.key", "store rekey new.key --key old.key", "store rekey --open --key old.key"))
def rekey(
    new: Annotated[str, typer.Argument(help="The new key: a file, or keyring:NAME.", metavar="[NEW]", show_default=False)] = "",
    home: HOME = None,
    key: KEY = "",
    clear: Annotated[bool, typer.Option("--open", help="Keep everything in the clear from now on, instead of a new key.")] = False,
) -> None:
    """Seal all stores with another key, or for the first time. Stop the node before, and give its config the new key afterwards.

    Cut off, the same command goes on. Copies that were made before open with the old key only: once it is destroyed, with none.
    """
    from simulations import stores

    if bool(new) == clear:
        raise InputError("store rekey takes a new key, or --open; 'store key FILE' makes one")
    _say(stores.rekey(home or default(), new, key))


@app.command(
    epilog=usage.examples(
        "store migrate my.yaml --run 7351966 --to bases/newer", "store migrate my.yaml --run 7351966 --to bases/newer --with project"
    )
)
def migrate(
    scenario: Annotated[str, typer.Argument(help="The run's scenario: a name in configs/ or a YAML file.", metavar="SCENARIO")],
    run: Annotated[str, typer.Option(help="The run, as 'store list' shows it after nodes/.", metavar="RUN")],
    to: Annotated[str, typer.Option("--to", help="The new base: a hub name or a folder.", metavar="BASE")],
    how: Annotated[str, typer.Option("--with", help="carry, project or layers.", metavar="NAME")] = "carry",
    option: Annotated[list[str] | None, typer.Option("--option", help="Of the migrator.", metavar="NAME=NUMBER")] = None,
    home: HOME = None,
    key: KEY = "",
) -> None:
    """Bring what a node keeps under a run of Flower to another base. The old store stays; no user's data is read, no budget spent.

    The server does its part by 'migrate RUN', and its new run finds the new stores. Cut off, the same command goes on.
    """
    from configs.scenario import load
    from simulations.migrate import node

    _say(node.migrate(load(scenario), run, to, how, option or [], home or default(), key))


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        usage.console().print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

"""``python -m simulations deploy ...``: a federation over machines, from keys to a run."""

import datetime as dt
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from configs.errors import InputError
from configs.scenario import label, load
from simulations import usage
from simulations.deploy import files, keys, machines, members, proxy
from simulations.deploy.files import Server
from simulations.deploy.keeper import Keeper

app = typer.Typer(
    cls=usage.Commands,
    name="deploy",
    help="Run a federation over machines: keys, certificates, processes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
FOLDER = Annotated[Path, typer.Argument(help="The server's folder, which 'deploy init' has made.")]
NAME = Annotated[str, typer.Argument(help="The node's name.")]


@app.command(epilog=usage.examples("deploy init lab hospital.example 10.0.0.1"))
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    names: Annotated[list[str], typer.Argument(help="What nodes call this server: host names or addresses.")],
    port: Annotated[int, typer.Option(help="Where nodes come in.")] = 9443,
    superlink: Annotated[int, typer.Option(help="The SuperLink's own port, on 127.0.0.1 alone.")] = 9092,
) -> None:
    """Make a server's folder: an authority, the server's certificate and key, server.yaml."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and stays as it is")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    keys.authority(folder)
    keys.server(folder, names)
    files.write(folder / "server.yaml", Server(names[0], port, superlink))
    _say("\n".join(_ends(folder)))
    _say(f"ca.key signs servers: keep it off this machine once server.crt is made\nnext: deploy server {folder}")


@app.command(epilog=usage.examples("deploy server lab"))
def server(folder: FOLDER) -> None:
    """Run a server until it is stopped: SuperLink, its helper, nginx. What ends is started again."""
    found = files.server(folder)
    if late := keys.warning(found.folder / "server.crt", dt.datetime.now(dt.UTC)):
        _say(f"warning: {late}")
    with Keeper(machines.of_server(found), found.home / "logs") as keeper:
        _say(f"nodes come in at {found.name}:{found.port}; logs are in {found.home / 'logs'}")
        keeper.keep()


@app.command(epilog=usage.examples("deploy add lab clinic --users ann,ben", "deploy add lab ward --data /data/users --device cuda"))
def add(
    folder: FOLDER,
    name: NAME,
    users: Annotated[str, typer.Option(help="Who is kept there, by commas; by default all that its data has.")] = "",
    partition: Annotated[str, typer.Option(help="Instead of names, i/n: every n-th user of the scenario.")] = "",
    data: Annotated[str, typer.Option(help="Where its data lies, instead of the scenario's data.path.")] = "",
    device: Annotated[str, typer.Option(help="What it trains on.")] = "",
    port: Annotated[int, typer.Option(help="Of Flower's processes there; another one for each node of a machine.")] = 9094,
) -> None:
    """Make what a node needs: its key, the authority's certificate, node.yaml. Carry that folder to the node and delete it here."""
    named = tuple(user.strip() for user in users.split(",") if user.strip())
    place = members.add(files.server(folder), name, users=named, partition=partition, data=data, device=device, port=port)
    files.member(place)
    _say(f"{place}: carry it to the node, except node.pub, which is needed here")
    _say(f"next: deploy register {folder} {name}; there: deploy node {name}")


@app.command(epilog=usage.examples("deploy node clinic"))
def node(folder: Annotated[Path, typer.Argument(help="A node's folder, or its node.yaml.")]) -> None:
    """Run a node until it is stopped: SuperNode and trainer. What ends is started again."""
    found = files.member(folder)
    if late := keys.warning(found.folder / "ca.crt", dt.datetime.now(dt.UTC)):
        _say(f"warning: {late}")
    with Keeper(machines.of_node(found), found.home / "logs") as keeper:
        _say(f"a node of {found.superlink}; private adapters, ledger and logs are in {found.home}")
        keeper.keep()


@app.command(epilog=usage.examples("deploy register lab clinic"))
def register(folder: FOLDER, name: NAME) -> None:
    """Let a node in. The server has to be running."""
    _say(f"{name} is let in, as node {members.register(files.server(folder), name)}")


@app.command(epilog=usage.examples("deploy revoke lab clinic"))
def revoke(folder: FOLDER, name: NAME) -> None:
    """Let a node in no more."""
    members.revoke(files.server(folder), name)
    _say(f"{name} is let in no more; what it keeps of its users stays with it")


@app.command(epilog=usage.examples("deploy rotate lab clinic"))
def rotate(folder: FOLDER, name: NAME) -> None:
    """Give a node a new key; the old one is let in no more."""
    _say(f"{members.rotate(files.server(folder), name) / 'node.key'}: carry it to the node and start that again")


@app.command(epilog=usage.examples("deploy renew lab hospital.example 10.0.0.1"))
def renew(
    folder: FOLDER, names: Annotated[list[str] | None, typer.Argument(help="By default the name in server.yaml.")] = None
) -> None:
    """Make a new server certificate. Start the server again to use it; nodes need nothing."""
    found = files.server(folder)
    keys.server(found.folder, names or [found.name])
    _say(f"{found.folder / 'server.crt'} until {keys.expires(found.folder / 'server.crt'):%Y-%m-%d}; start the server again")


@app.command("list", epilog=usage.examples("deploy list lab"))
def list_(folder: FOLDER) -> None:
    """Show the nodes that have been added, whether they are let in, and when certificates end."""
    found = files.server(folder)
    for known in members.known(found).values():
        _say(f"{known.name}: {f'let in, as node {known.node}' if known.node else 'not let in'}")
    _say("\n".join(_ends(found.folder)))


@app.command(epilog=usage.examples("deploy nginx lab > nginx.conf"))
def nginx(folder: FOLDER) -> None:
    """Print the configuration of a proxy that opens to the world what nodes need, and nothing else."""
    _say(proxy.config(files.server(folder)))


@app.command(epilog=usage.examples("deploy bundle"))
def bundle() -> None:
    """Print the digest of the code that 'deploy run' sends to nodes, for bundles in a node.yaml: that node then runs nothing else."""
    from simulations.deploy import supernode  # with Flower's SuperNode, for which no other command here waits

    _say(supernode.digest(machines.ROOT))


@app.command(epilog=usage.examples("deploy run lab demo rounds=20 --nodes 3 --quorum 0.8 --deadline 600"))
def run(
    folder: FOLDER,
    scenario: Annotated[str, typer.Argument(help="A name in configs/ or a YAML file there.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings, e.g. rounds=5", metavar="[KEY=VALUE]...")] = None,
    out: Annotated[str, typer.Option(help="The run's folder in the server's home; by default <name>-<hash>.")] = "",
    nodes: Annotated[int, typer.Option(help="Wait for so many nodes.", min=0)] = 0,
    quorum: Annotated[float, typer.Option(help="The share of a round's users that must be heard from.", min=0.0, max=1.0)] = 0.0,
    deadline: Annotated[float, typer.Option(help="Seconds for a round's answers.", min=1.0)] = 3600.0,
    since: Annotated[str, typer.Option("--from", help="Of a later period of a life: the folder of the run before.")] = "",
) -> None:
    """Run or resume a scenario on the nodes, and give it again whenever it ends before its last round."""
    import shlex

    from server import checkpoint, rounds

    found, asked = files.server(folder), load(scenario, overrides or [])
    place = found.home / "runs" / (out or label(asked))

    def finished() -> bool:
        last = checkpoint.latest(place) if place.exists() else None
        return last is not None and last.round >= rounds.last_round(asked) and (place / "summary.json").exists()

    config = {"scenario": scenario, "overrides": shlex.join(overrides or []), "out": place.name, "nodes": nodes, "quorum": quorum,
              "deadline": deadline, "from": since}  # fmt: skip
    machines.run(found, config, finished, _say)
    _say(f"report: {place / 'report.html'}")


def _ends(folder: Path) -> list[str]:
    return [f"{folder / name} until {keys.expires(folder / name):%Y-%m-%d}" for name in ("ca.crt", "server.crt")]


def _say(text: str, write: Callable[[str], object] = sys.stdout.write) -> None:
    write(text.rstrip() + "\n")
    sys.stdout.flush()

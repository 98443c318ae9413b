"""Who may take part: nodes by name, each with a key that the SuperLink knows, or knew."""

import json
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError, nearest
from simulations.deploy import keys, machines
from simulations.deploy.files import Member, Server, write
from simulations.deploy.machines import LAB

LIST = "nodes.json"


@dataclass(frozen=True)
class Known:
    """What the server's folder holds of a node."""

    name: str
    node: int  # Flower's id of its key; 0: not registered, or revoked


def known(server: Server) -> dict[str, Known]:
    """All nodes that have been added, by name."""
    path = server.folder / LIST
    said = json.loads(path.read_text()) if path.exists() else {}
    return {name: Known(name, node) for name, node in sorted(said.items())}


def bundle(server: Server, name: str) -> Path:
    """What has to be carried to a node: its key, the authority's certificate, its YAML. Private keys are best made where they stay."""
    return server.folder / "nodes" / name


def add(server: Server, name: str, **said: object) -> Path:
    """Make a node's bundle."""
    if not name or not all(c.isalnum() or c in "-_" for c in name):
        raise InputError(f"a node's name may hold letters, digits, - and _, got '{name}'")
    folder = bundle(server, name)
    if folder.exists():
        raise InputError(f"{folder} is there already and stays")
    keys.node(folder)
    (folder / "ca.crt").write_bytes((server.folder / "ca.crt").read_bytes())
    write(folder / "node.yaml", Member(f"{server.name}:{server.port}", **said))  # type: ignore[arg-type]
    _keep(server, name, 0)
    return folder


def register(server: Server, name: str) -> int:
    """Let a node in. The SuperLink has to be running."""
    found = _of(server, name)
    if found.node:
        raise InputError(f"node '{name}' is registered already")
    said = machines.flwr(
        server, "supernode", "register", str(bundle(server, name) / "node.pub"), LAB, "--name", name, "--format", "json"
    )
    answer = json.loads(said)
    if "node-id" not in answer:
        raise InputError(f"node '{name}' was not let in: {' '.join(str(answer.get('error-message', said)).split())}")
    node = int(answer["node-id"])
    _keep(server, name, node)
    return node


def revoke(server: Server, name: str) -> None:
    """Let a node in no more: from now on the SuperLink refuses whatever its key signs."""
    found = _of(server, name)
    if not found.node:
        raise InputError(f"node '{name}' is not registered")
    machines.flwr(server, "supernode", "unregister", str(found.node), LAB, "--format", "json")
    _keep(server, name, 0)


def rotate(server: Server, name: str) -> Path:
    """Make a new key for a node and let that one in, and the old one no more. The new ``node.key`` has to be carried over."""
    found = _of(server, name)
    folder = bundle(server, name)
    if found.node:
        revoke(server, name)
    for old in ("node.key", "node.pub"):
        (folder / old).unlink(missing_ok=True)
    keys.node(folder)
    register(server, name)
    return folder


def _of(server: Server, name: str) -> Known:
    found = known(server)
    if name not in found:
        raise InputError(f"no node is called '{name}'{nearest(name, found)}")
    return found[name]


def _keep(server: Server, name: str, node: int) -> None:
    from strategies.files import write_text  # with torch, for which no other command here waits

    said = {k.name: k.node for k in known(server).values()} | {name: node}
    write_text(server.folder / LIST, json.dumps(said, indent=1) + "\n")

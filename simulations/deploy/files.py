"""The small YAML files that a server and a node are started from. Paths in them are meant from where the file lies."""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from configs import reading
from configs.errors import InputError, nearest

T = TypeVar("T")


ANY = "any"  # instead of digests: whatever the server sends


@dataclass(frozen=True)
class Server:
    """``server.yaml``: where nodes come in, and what runs behind it."""

    name: str  # what nodes call this machine: a host name or address that its certificate holds
    port: int = 9443  # where nodes come in
    superlink: int = 9092  # the SuperLink's own port, on 127.0.0.1 alone
    home: Path = Path("home")  # database, runs, ledger, logs
    proxy: bool = True  # start nginx; false: somebody else's proxy has the configuration that `deploy nginx` prints
    folder: Path = Path()  # where the file lies, with certificates, keys and nodes

    @property
    def link(self) -> str:
        """Where the SuperLink answers to this machine."""
        return f"127.0.0.1:{self.superlink}"


@dataclass(frozen=True)
class Member:
    """``node.yaml``: one node of a federation."""

    superlink: str  # host:port where nodes come in
    port: int = 9094  # of this machine's own, for Flower's processes; another one for each node of a machine
    home: Path = Path("home")  # private adapters, ledger, logs
    data: str = ""  # instead of the scenario's data.path
    device: str = ""  # instead of the scenario's engine.device
    users: tuple[str, ...] = ()  # who is kept here; none named: all that the data has
    partition: str = ""  # instead of names, i/n: every n-th user of the scenario from the i-th on
    rank: int = 0  # of the shared LoRA at most so many ranks; 0: all
    epsilon: float = 0.0  # the most of guarantee E that is spent here on anyone; 0: what scenarios say
    store_key: str = ""  # seals private adapters: a file, or keyring:NAME (docs/store.md)
    noise: str = ""  # "seed" makes of it a node that is only played
    bundles: tuple[str, ...] = ()  # digests of the bundles that may run here (`deploy bundle`); none named: whatever the server sends
    trainer: bool = True  # keep the base model in a process of its own, for all messages
    folder: Path = Path()  # where the file lies, with the node's key and the authority's certificate

    def config(self) -> str:
        """What Flower calls a node config."""
        key = str(self.folder / self.store_key) if self.store_key and not self.store_key.startswith("keyring:") else self.store_key
        said: dict[str, Any] = {"data-path": self.data, "device": self.device, "users": ",".join(self.users), "noise": self.noise,
                                "store-key": key}  # fmt: skip
        text = [f'{name}="{value}"' for name, value in said.items() if value]
        numbers = {"rank": self.rank, "epsilon": self.epsilon}
        if self.partition:
            index, _, count = self.partition.partition("/")
            numbers |= {"partition-id": int(index), "num-partitions": int(count)}
        return " ".join(text + [f"{name}={value}" for name, value in numbers.items() if value or name == "partition-id"])


def server(path: Path) -> Server:
    """Read a server's file, or that of its folder. Raises `InputError`."""
    path = path / "server.yaml" if path.is_dir() else path
    found = _read(path, Server)
    for name in ("port", "superlink"):
        _port(path, name, getattr(found, name))
    return found


def member(path: Path) -> Member:
    """Read a node's file, or that of its folder. Raises `InputError`."""
    path = path / "node.yaml" if path.is_dir() else path
    found = _read(path, Member)
    _port(path, "port", found.port)
    host, _, port = found.superlink.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"{path}: superlink must be host:port, got '{found.superlink}'")
    index, _, count = found.partition.partition("/")
    if found.partition and not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise InputError(f"{path}: partition must be i/n with i below n, e.g. 0/3, got '{found.partition}'")
    if found.partition and found.users:
        raise InputError(f"{path}: users and partition both say who is kept here; leave one out")
    if bad := [text for text in found.bundles if len(text) != 64 or set(text) - set("0123456789abcdef")]:
        raise InputError(f"{path}: bundles must be digests of 64 hexadecimal digits, as 'deploy bundle' prints them, got '{bad[0]}'")
    if bad := [text for text in (found.data, found.device, *found.users) if '"' in text]:
        raise InputError(f"{path}: a quotation mark cannot be passed on to Flower: {bad[0]}")
    return found


def write(path: Path, what: Server | Member) -> None:
    """Write a file with all that differs from what is usual."""
    usual = {f.name: f.default for f in dataclasses.fields(what)}
    said = {name: value for name, value in vars(what).items() if value != usual[name] and name != "folder"}
    plain = {n: list(v) if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v for n, v in said.items()}
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))


def _read(path: Path, kind: type[T]) -> T:
    if not path.is_file():
        raise InputError(f"{path} is not there")
    said: Any = OmegaConf.to_container(reading.tree(path, reading.text(path)))
    kinds = {name: hint for name, hint in typing.get_type_hints(kind).items() if name != "folder"}
    for name, value in said.items():
        if name not in kinds:
            raise InputError(f"{path}: unknown key '{name}'{nearest(str(name), kinds)}")
        said[name] = _typed(path, name, value, kinds[name])
    needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    if missing := [name for name in needed if name not in said]:
        raise InputError(f"{path}: {missing[0]} is missing")
    folder = path.resolve().parent
    found: Any = kind(**said | {"folder": folder})
    return dataclasses.replace(found, home=folder / found.home)


def _typed(path: Path, name: str, value: Any, kind: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list) and value and all(isinstance(item, str | int) for item in value):
            return tuple(map(str, value))
    elif type(value) is kind:
        return value
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    raise InputError(f"{path}: {name} must be {words.get(kind, 'a list of names')}, got {value!r}")


def _port(path: Path, name: str, port: int) -> None:
    if not 0 < port < 65536:
        raise InputError(f"{path}: {name} must be a port from 1 to 65535, got {port}")

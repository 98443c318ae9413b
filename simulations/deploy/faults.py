"""What can go wrong in a federation, done on purpose: a `Fault` strikes a running `Federation` once.

After each of them every round has to come to its end, with everybody heard from where ``quorum`` is 1.
"""

import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from client.private import PrivateStore
from client.store import backup as backups
from configs.errors import InputError
from simulations.deploy import keys, members
from simulations.deploy.federation import Federation, patiently

AWAY = 30.0  # seconds that a thing is away
NOTICED = 90.0  # seconds in which a fault has to be noticed
KEPT = 600.0  # seconds in which a node has to have kept something
SMALL_DISK = 1 << 30  # bytes: a file system that may be filled
Strike = Callable[[Federation], None]


@dataclass(frozen=True)
class Fault:
    """One way to fail.

    ``trainer``: the kind of `simulations.deploy.faulty` that takes the place of a node's trainer for the whole run. ``heard``: what
    an operator finds in the logs, as a pattern.
    """

    strike: Strike | None = None
    quorum: float = 1.0  # share of a round's users that have to be heard from
    trainer: str = ""
    heard: str = ""


def kill(keeper: int, name: str) -> Strike:
    """Kill -9 one of the processes that are kept running."""
    return lambda fed: fed.kill(keeper, name)


def kill_started(name: str) -> Strike:
    """Kill -9 a process that Flower starts for a task, as soon as there is one."""

    def strike(fed: Federation) -> None:
        end = time.monotonic() + 120.0
        while time.monotonic() < end:
            for process in fed.started(name):
                process.kill()
                return
            time.sleep(0.1)

    return strike


def everything(fed: Federation) -> None:
    """Kill -9 all processes of one node."""
    for name in list(fed.keepers[2].running):
        fed.kill(2, name)


def offline(fed: Federation) -> None:
    """Take a node's network away; without namespaces its SuperNode is frozen, which answers as little."""
    if fed.hosts.apart:
        fed.hosts.cut("n0")
        time.sleep(AWAY)
        fed.hosts.cut("n0", False)
    else:
        process = fed.keepers[1].running["supernode"]
        process.send_signal(signal.SIGSTOP)
        time.sleep(AWAY)
        process.send_signal(signal.SIGCONT)


def disk_full(fed: Federation) -> None:
    """Fill a node's disk to the last byte, and make room again later. Raises `InputError` where the disk is everybody's."""
    home = fed.nodes[0].home
    if shutil.disk_usage(home).total > SMALL_DISK:
        raise InputError("a disk of more than 1 GiB is not filled")
    filler = home / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    time.sleep(AWAY)
    filler.unlink()


def corrupted(fed: Federation) -> None:
    """Flip a bit of a private adapter on its disk; once the node has said so, a backup is restored."""
    home, archive = fed.nodes[0].home, fed.nodes[0].folder / f"backup-{time.time_ns()}.tar"

    def spoil() -> None:
        files = sorted(fed.store(fed.nodes[0]).glob("*/*.safetensors"), key=lambda path: path.stat().st_mtime)
        if not files:
            raise InputError("nothing is kept yet")
        archive.unlink(missing_ok=True)
        backups.backup(home, archive, None)
        with PrivateStore(files[-1].parents[1]).held(alone=True):
            data = bytearray(files[-1].read_bytes())  # still there: the newest when the copy was made
            data[-1] ^= 1
            files[-1].write_bytes(data)

    patiently(spoil, KEPT)
    _noticed(fed, r"is damaged", time.monotonic() + NOTICED)
    patiently(lambda: backups.restore(archive, home, None), NOTICED)


def expired(fed: Federation) -> None:
    """Let the server's certificate have ended; it is renewed later."""
    for days in (0, keys.SERVER_DAYS):
        keys.server(fed.server.folder, [fed.server.name], days)
        fed.kill(0, "nginx")
        time.sleep(AWAY if days == 0 else 0)


def revoked(fed: Federation) -> None:
    """Revoke a node's key; later it gets another one."""
    members.revoke(fed.server, "n2")
    time.sleep(AWAY)
    members.rotate(fed.server, "n2")
    fed.kill(3, "supernode")


def other_base(fed: Federation) -> None:
    """Give a node another base model, until it has said so."""
    end = time.monotonic() + NOTICED
    with trainer(fed, "base"):
        _noticed(fed, r"the run is on base model", end)


@contextmanager
def trainer(fed: Federation, kind: str) -> Iterator[None]:
    """`simulations.deploy.faulty` in place of a node's trainer."""
    real = fed.keepers[3].commands["trainer"]
    fed.replace(3, replace(real, words=[*fed.hosts.on("n2"), sys.executable, "-m", "simulations.deploy.faulty", kind]))
    try:
        yield
    finally:
        fed.replace(3, real)


FAULTS: Mapping[str, Fault] = {
    "kill superlink": Fault(kill(0, "superlink"), heard=r"superlink ended.*"),
    "kill superexec": Fault(kill(0, "superexec"), heard=r"superexec ended.*"),
    "kill nginx": Fault(kill(0, "nginx"), heard=r"nginx ended.*"),
    "kill serverapp": Fault(kill_started("flwr-serverapp"), heard=r"the run ended before its last round.*"),
    "kill supernode": Fault(kill(1, "supernode"), heard=r"supernode ended.*"),
    "kill trainer": Fault(kill(1, "trainer"), heard=r"trainer ended.*"),
    "kill clientapp": Fault(kill_started("flwr-clientapp"), heard=r"round \d+: nodes of.*"),
    "kill a whole node": Fault(everything, heard=r"supernode ended.*"),
    "network away for 30 s": Fault(offline, heard=r".*onnection.*"),
    "disk full for 30 s": Fault(disk_full, heard=r".*(?:No space left|is full).*"),
    "store file corrupted": Fault(corrupted, heard=r"[^\n']*is damaged[^\n]*"),
    "certificate expired for 30 s": Fault(expired, heard=r".*certificate (?:has )?expired.*"),
    "key revoked for 30 s": Fault(revoked, heard=r".*(?:401|Unauthorized|UNAUTHENTICATED|not registered).*"),
    "wrong base model": Fault(other_base, heard=r"the run is on base model.*"),
    "node sends nan": Fault(trainer="nan", quorum=0.5, heard=r"node .*dropped.*"),
    "node sends huge": Fault(trainer="huge", quorum=0.5),
    "node sends shape": Fault(trainer="shape", quorum=0.5),
    "node sends replayed": Fault(trainer="replayed", quorum=0.5),
    "node is 10 times as slow": Fault(trainer="slow", quorum=0.5),
}


# ---------------------------------------------------------------------- logs
def logs(fed: Federation, at: Path | None = None) -> list[Path]:
    """What the machines, or one of them, have written down."""
    homes = [at] if at else [fed.server.home, *(node.home for node in fed.nodes)]
    return [path for home in homes for path in sorted((home / "logs").glob("*.log"))]


def marks(fed: Federation) -> dict[Path, int]:
    """Where logs end now."""
    return {path: path.stat().st_size for path in logs(fed)}


def heard(fed: Federation, since: Mapping[Path, int], pattern: str, at: Path | None = None) -> str:
    """The first thing like this that logs have said since then, or nothing."""
    for path in logs(fed, at):
        with path.open("rb") as file:
            file.seek(since.get(path, 0))
            if found := re.search(pattern, file.read().decode(errors="replace")):
                return found[0].strip()
    return ""


def _noticed(fed: Federation, pattern: str, end: float) -> None:
    since = {path: max(0, size - 4096) for path, size in marks(fed).items()}
    while time.monotonic() < end and not heard(fed, since, pattern):
        time.sleep(0.5)

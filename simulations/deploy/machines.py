"""The processes of a server and of a node, and a run that is given again until it has come to its end."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from configs.errors import InputError
from simulations.deploy import keys, proxy
from simulations.deploy.files import ANY, Member, Server
from simulations.deploy.keeper import Command
from simulations.flower_ray import Config, toml

ROOT = Path(__file__).resolve().parents[2]
LAB = "lab"  # what flwr calls the connection to this server
SECRET = "superexec.secret"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
    "TOKENIZERS_PARALLELISM": "false",
}
AGAIN = 20  # times that a run is given again


def environment(home: Path) -> dict[str, str]:
    """What Flower's processes of one machine find: their home, and Homing."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**QUIET, "HOMING_HOME": str(home), "FLWR_HOME": str(home / "flwr"), "PATH": path, "PYTHONPATH": str(ROOT)}


def of_server(server: Server) -> list[Command]:
    """SuperLink, the process that starts ServerApps, and nginx. A ServerApp is no child of the SuperLink, and so survives its death."""
    folder, env = server.folder, environment(server.home)
    connect(server)
    if not (folder / SECRET).exists():
        keys.secret(folder / SECRET, secrets.token_bytes(32))
    tls = ["--ssl-ca-certfile", folder / "ca.crt", "--ssl-certfile", folder / "server.crt", "--ssl-keyfile", folder / "server.key"]
    link = [tool("flower-superlink"), "--host", "127.0.0.1", "--port", server.superlink, "--database", server.home / "superlink.db",
            "--isolation", "process", "--enable-supernode-auth", "--superexec-auth-secret-file", folder / SECRET, *tls]  # fmt: skip
    executor = [tool("flower-superexec"), "--runtime-api-address", server.link, "--root-certificates", folder / "ca.crt",
                "--superexec-auth-secret-file", folder / SECRET]  # fmt: skip
    found = [Command("superlink", _words(link), env), Command("superexec", _words(executor), env)]
    if server.proxy:
        nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if nginx is None:
            raise InputError(
                f"nginx is not installed; install it, or set proxy: false in {folder / 'server.yaml'} and open the paths elsewhere"
            )
        words = [nginx, "-p", server.home, "-c", proxy.write(server), "-g", "daemon off;"]
        found.append(Command("nginx", _words(words), env, whole=True))
    return found


def of_node(member: Member) -> list[Command]:
    """A SuperNode, and the trainer that keeps the base model beside it."""
    env = environment(member.home)
    words = [sys.executable, "-m", "simulations.deploy.supernode", ",".join(member.bundles) or ANY,
             "--superlink", member.superlink, "--root-certificates", member.folder / "ca.crt",
             "--auth-supernode-private-key", member.folder / "node.key", "--port", member.port]  # fmt: skip
    config = member.config()
    found = [Command("supernode", _words([*words, *(("--node-config", config) if config else ())]), env)]
    return [*found, Command("trainer", [sys.executable, "-m", "client.resident"], env)] if member.trainer else found


def connect(server: Server) -> None:
    """Tell ``flwr`` on this machine where the server is."""
    place = server.home / "flwr"
    place.mkdir(parents=True, exist_ok=True)
    said = f'address = "{server.link}"\nroot-certificates = "{server.folder / "ca.crt"}"\n'
    (place / "config.toml").write_text(f'[superlink]\ndefault = "{LAB}"\n[superlink.{LAB}]\n{said}')


def flwr(server: Server, *words: str) -> str:
    """What a command of Flower's says. Raises `InputError` with the end of it where it fails."""
    connect(server)
    done = subprocess.run([tool("flwr"), *words], env={**os.environ, **environment(server.home)}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).split())[-600:]
        raise InputError(f"flwr {' '.join(words[:2])} failed: {said}")
    return done.stdout


def run(server: Server, config: Config, finished: Callable[[], bool], say: Callable[[str], None], app: Path = ROOT,
        again: int = AGAIN) -> None:  # fmt: skip
    """Give a run to the SuperLink, and again where it ends before it has finished: it goes on after its last committed round.

    Raises `InputError` for a run that makes no progress at all.
    """
    place = server.home / "flwr" / "run.toml"
    connect(server)
    place.write_text(toml(config), encoding="utf-8")
    for turn in range(again):
        try:
            say(flwr(server, "run", str(app), LAB, "--stream", "--run-config", str(place)))
        except InputError as error:
            say(f"error: {error}")
        if finished():
            return
        say(f"the run ended before its last round; it is given again ({turn + 1} of {again})")
        time.sleep(min(30.0, 2.0**turn))
    raise InputError(f"the run was given {again} times and did not come to its end; {server.home / 'logs'} says why")


def tool(name: str) -> str:
    """Where a command of Flower's lies."""
    found = Path(sys.executable).parent / name
    if not found.exists():
        raise InputError(f"Flower's command '{name}' is not installed beside {sys.executable}")
    return str(found)


def _words(words: list[object]) -> list[str]:
    return [str(word) for word in words]


def told(text: str) -> Mapping[str, str]:
    """``name=value`` lines as a mapping."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

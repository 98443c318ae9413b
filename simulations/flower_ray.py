"""A real ``flwr run``, on Flower's Ray simulation or over a SuperLink and SuperNodes of this machine.

Either has a home and ports of its own, and nothing of it is left afterwards.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from configs.errors import InputError

LIMIT = 900.0  # seconds for one run
GRACE = 5.0  # seconds in which a daemon may end by itself
Config = Mapping[str, str | int | float | bool]

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


class Done(NamedTuple):
    """A run that came to its end."""

    seconds: float  # wall time of the command
    said: str  # what it wrote


@contextmanager
def flower_home(folder: Path) -> Iterator[dict[str, str]]:
    """An environment for ``flwr``; the daemon that it starts, and Ray, are ended afterwards, whatever happened.

    Ray gets a folder of its own too, so that it joins no cluster that somebody else has started on this machine.
    """
    home = Path(tempfile.mkdtemp(prefix="flwr-", dir=folder)).resolve()
    ray = tempfile.mkdtemp(prefix="ray-")  # not under `folder`: the paths of its sockets may have 107 bytes
    api, control = free_ports(2)
    ports = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(api), "FLWR_LOCAL_CONTROL_API_PORT": str(control)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    quick = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}  # seconds; 1 by default
    outer = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    try:
        yield {**outer, **QUIET, **ports, **quick, "FLWR_HOME": str(home), "RAY_TMPDIR": ray, "PATH": path}
    finally:
        end(home)
        shutil.rmtree(ray, ignore_errors=True)


def run(app: Path, env: Mapping[str, str], nodes: int, config: Config, cpus: int = 0) -> Done:
    """Run the app to its end on so many simulated nodes. Each takes one of Ray's ``cpus`` while it works (0: the machine's).

    Raises `InputError` when Flower is not installed or the run fails, with the end of what it said.
    """
    federation = f"num-supernodes={nodes} client-resources-num-cpus=1 client-resources-num-gpus=0.0"
    federation += f" init-args-num-cpus={cpus}" if cpus else ""
    return _flwr_run(app, env, ["--federation-config", federation], config)


def deploy(app: Path, env: Mapping[str, str], stores: Sequence[Path], config: Config) -> Done:
    """Run the app to its end over a SuperLink and a SuperNode for each of ``stores``, which become the nodes' ``HOMING_HOME``.

    The server's is the one in ``env``. Raises `InputError` as `run` does.
    """
    home, (link, *ports) = Path(env["FLWR_HOME"]), free_ports(1 + len(stores))
    address = f"127.0.0.1:{link}"
    (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n')
    commands = [(env, [_tool("flower-superlink"), "--insecure", "--port", str(link)])]
    for index, (store, port) in enumerate(zip(stores, ports, strict=True)):
        kept = f"partition-id={index} num-partitions={len(stores)}"
        node = [_tool("flower-supernode"), "--insecure", "--superlink", address, "--port", str(port), "--node-config", kept]
        commands.append(({**env, "HOMING_HOME": str(store)}, node))
    started: list[subprocess.Popen[bytes]] = []
    try:
        with (home / "daemons.log").open("wb") as said:
            started += [subprocess.Popen(c, env=e, cwd=home, stdout=said, stderr=subprocess.STDOUT) for e, c in commands]
        _await(link)
        return _flwr_run(app, env, ["here"], config)
    finally:
        end(home)
        for process in started:
            process.wait()


def _flwr_run(app: Path, env: Mapping[str, str], where: Sequence[str], config: Config) -> Done:
    home = Path(env["FLWR_HOME"])
    (home / "run.toml").write_text(toml(config), encoding="utf-8")
    command = [_tool("flwr"), "run", str(app), *where, "--stream", "--run-config", str(home / "run.toml")]
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"flwr run did not end within {LIMIT:g} s") from None
    if done.returncode:
        raise InputError(f"flwr run failed: {done.stdout[-1500:]}")
    return Done(time.perf_counter() - began, done.stdout)


def _tool(name: str) -> str:
    found = Path(sys.executable).parent / name
    if not found.exists():
        raise InputError(f"Flower's command '{name}' is not installed beside {sys.executable}")
    return str(found)


def _await(port: int, patience: float = 60.0) -> None:
    """Wait until something listens there: ``flwr run`` does not."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.1)
    raise InputError(f"no SuperLink came up on port {port} within {patience:g} s")


def toml(config: Config) -> str:
    """Plain values as TOML, for which JSON's are right: blanks, quotes and all."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in config.items())


def end(home: Path) -> None:
    """End what was started for this home and no other, with all its descendants: the daemon, the run, Ray and its workers."""
    mine = belonging(home)
    for process in mine:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(mine, timeout=GRACE)
    for process in {*alive, *belonging(home)}:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE)


def belonging(home: Path) -> set[psutil.Process]:
    """Processes that carry this home in their environment, and what descends from them.

    Ray's workers write their title over their environment, so they are known by their parents only.
    """
    found = {process for process in psutil.process_iter() if _carries(process, home)}
    for process in list(found):
        with suppress(psutil.Error):
            found |= set(process.children(recursive=True))
    return found


def _carries(process: psutil.Process, home: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get("FLWR_HOME") == str(home)
    except psutil.Error:
        return False


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()

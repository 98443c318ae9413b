"""A real ``flwr run`` on Flower's Ray simulation, in a home and on ports of its own, and nothing of it left afterwards."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from configs.errors import InputError

LIMIT = 900.0  # seconds for one run
GRACE = 5.0  # seconds in which the daemon may end by itself

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
    api, control = _free_ports(2)
    ports = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(api), "FLWR_LOCAL_CONTROL_API_PORT": str(control)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    quick = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}  # seconds; 1 by default
    outer = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    try:
        yield {**outer, **QUIET, **ports, **quick, "FLWR_HOME": str(home), "RAY_TMPDIR": ray, "PATH": path}
    finally:
        end(home)
        shutil.rmtree(ray, ignore_errors=True)


def run(app: Path, env: Mapping[str, str], nodes: int, config: Mapping[str, str | int | float | bool], cpus: int = 0) -> Done:
    """Run the app to its end on so many simulated nodes. Each takes one of Ray's ``cpus`` while it works (0: the machine's).

    Raises `InputError` when Flower is not installed or the run fails, with the end of what it said.
    """
    flwr = Path(sys.executable).parent / "flwr"
    if not flwr.exists():
        raise InputError(f"Flower's command is not installed beside {sys.executable}")
    home = Path(env["FLWR_HOME"])
    (home / "run.toml").write_text(toml(config), encoding="utf-8")
    federation = f"num-supernodes={nodes} client-resources-num-cpus=1 client-resources-num-gpus=0.0"
    federation += f" init-args-num-cpus={cpus}" if cpus else ""
    command = [str(flwr), "run", str(app), "--stream", "--federation-config", federation, "--run-config", str(home / "run.toml")]
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


def toml(config: Mapping[str, str | int | float | bool]) -> str:
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


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()

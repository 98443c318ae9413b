"""The same federation as a real ``flwr run`` on Flower's Ray simulation, in a home and on ports of its own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from configs.errors import InputError

LIMIT = 900  # seconds for one run

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


@contextmanager
def flower_home(folder: Path) -> Iterator[dict[str, str]]:
    """An environment for ``flwr``; the daemon that it starts is ended afterwards."""
    home = Path(tempfile.mkdtemp(prefix="flwr-", dir=folder))
    api, control = _free_ports(2)
    ports = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(api), "FLWR_LOCAL_CONTROL_API_PORT": str(control)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        yield {**os.environ, **QUIET, **ports, "FLWR_HOME": str(home), "PATH": path}
    finally:
        _end(home)


def run(app: Path, env: dict[str, str], users: int, config: dict[str, str | int | float | bool]) -> float:
    """Run the app to its end and return the wall seconds of the command.

    Raises `InputError` when Flower is not installed or the run fails, with the end of what it said.
    """
    flwr = Path(sys.executable).parent / "flwr"
    if not flwr.exists():
        raise InputError(f"bench: Flower's command is not installed beside {sys.executable}")
    federation = f"num-supernodes={users} client-resources-num-cpus=1 client-resources-num-gpus=0.0"
    command = [str(flwr), "run", str(app), "--stream", "--federation-config", federation, "--run-config", _toml(config)]
    began = time.perf_counter()
    done = subprocess.run(command, env=env, cwd=app.parent, capture_output=True, text=True, timeout=LIMIT, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise InputError(f"bench: flwr run failed: {(done.stdout + done.stderr)[-1500:]}")
    (app.parent / "flwr.log").write_text(done.stdout + done.stderr)
    return seconds


def _toml(config: dict[str, str | int | float | bool]) -> str:
    def value(v: str | int | float | bool) -> str:
        return str(v).lower() if isinstance(v, bool) else f"'{v}'" if isinstance(v, str) else str(v)

    return " ".join(f"{name}={value(v)}" for name, v in config.items())


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _end(home: Path) -> None:
    """End what was started for this home and no other: the daemon and its children carry the home in their environment."""
    mine = [process for process in psutil.process_iter() if _belongs(process, home)]
    for process in mine:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(mine, timeout=5)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()


def _belongs(process: psutil.Process, home: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get("FLWR_HOME") == str(home)
    except psutil.Error:
        return False

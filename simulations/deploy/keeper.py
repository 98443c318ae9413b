"""Keep processes running: start them, start again what ends, and end all of them together."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("homing")
FIRST, LAST = 1.0, 30.0  # seconds before a process that has ended is started again: at first, and at most
STEADY = 60.0  # seconds after which a process counts as having come up
GRACE = 10.0  # seconds in which processes may end by themselves
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG, on Linux


@dataclass(frozen=True)
class Command:
    """A process that has to be there."""

    name: str
    words: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)  # beside this process's own
    whole: bool = False  # what it has started must be gone before it is started again


class Keeper:
    """Commands as running processes, each with a log of its own under ``logs``."""

    def __init__(self, commands: Sequence[Command], logs: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.commands, self.logs, self.clock = {c.name: c for c in commands}, logs, clock
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.began: dict[str, float] = {}
        self.wait: dict[str, float] = {}  # seconds until the next start
        self.due: dict[str, float] = {}
        self.files = ExitStack()
        self.busy, self.over = threading.Lock(), False

    def __enter__(self) -> "Keeper":
        self.logs.mkdir(parents=True, exist_ok=True)
        for name in self.commands:
            self._start(name)
        return self

    def __exit__(self, *_: object) -> None:
        """End all of them: first they are asked, then they are killed."""
        with self.busy:
            self.over = True  # whoever looks after this in another thread starts nothing again
        for process in self.running.values():
            with suppress(ProcessLookupError):
                process.terminate()
        until = time.monotonic() + GRACE
        for process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        for name in self.running:
            self._clear(name)
        self.files.close()

    def look(self) -> None:
        """Start again what has ended, sooner the longer it had been there."""
        with self.busy:
            self._look(self.clock())

    def _look(self, now: float) -> None:
        for name, process in self.running.items() if not self.over else ():
            if process.poll() is None:
                continue
            if name not in self.due:
                steady = now - self.began[name] > STEADY
                self.wait[name] = FIRST if steady else min(LAST, 2 * self.wait.get(name, FIRST / 2))
                self.due[name] = now + self.wait[name]
                log.warning("%s ended (%s); it is started again in %g s", name, process.returncode, self.wait[name])
            elif now >= self.due[name]:
                self._start(name)

    def keep(self) -> None:
        """Look after the processes until this one is told to end (SIGTERM, SIGINT)."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with suppress(KeyboardInterrupt):
            while True:
                self.look()
                time.sleep(0.5)

    def _start(self, name: str) -> None:
        command = self.commands[name]
        self._clear(name)
        said = self.files.enter_context((self.logs / f"{name}.log").open("ab"))
        self.running[name] = subprocess.Popen(
            command.words, env={**os.environ, **command.env}, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            start_new_session=command.whole, preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
        self.began[name] = self.clock()
        self.due.pop(name, None)

    def _clear(self, name: str) -> None:
        """Kill what a process that has ended has left behind, where nothing of it may stay: nginx's workers would keep its port."""
        if self.commands[name].whole and name in self.running:
            with suppress(ProcessLookupError):
                os.killpg(self.running[name].pid, signal.SIGKILL)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGTERM)

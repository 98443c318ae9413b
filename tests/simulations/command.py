"""The command line as a person meets it, and a tiny world on disk for it: random weights, a tokenizer of words, JSON Lines users."""

import contextlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from simulations.__main__ import main
from tests.conftest import write_files

ROOT = Path(__file__).resolve().parents[2]
USERS, ROUNDS = 6, 3
SETTINGS = (
    "name=tiny data.name=files data.task=choice data.min_examples=6 data.max_tokens=16 data.train=0.6 data.validation=0.2 "
    f"data.unseen_users=1 rounds={ROUNDS} evaluate_every=2 users_per_round=4 personalize=1 aggregator=fedavgm engine.device=cpu "
    "engine.threads=1 shared.rank=2 shared.layers=2 private.rank=2 private.layers=2 shared_training.batch=3 "
    "private_training.batch=3 shared_training.lr=0.01 private_training.lr=0.01"
)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.simulations.command", "simulations.run", "simulations.progress", "server.report.tables", "accelerate"]
)


@dataclass(frozen=True)
class Said:
    """What a command left in the terminal."""

    code: Any
    out: str
    err: str


def write_world(folder: Path, tokenizer: Any) -> str:
    """Write a model and users; returns the settings that name them."""
    return f"{SETTINGS} {write_files(folder, tokenizer, USERS + 1)}"


def call(*words: str | Path) -> Said:
    """Run a command in this process, through the real entry."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["simulations", *map(str, words)])
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):  # a machine that builds may have them
            patch.delenv(name, raising=False)
        patch.setattr("typer.rich_utils.FORCE_TERMINAL", None)  # read from the environment when it was imported
        with pytest.raises(SystemExit) as ended:
            main()
    return Said(ended.value.code, out.getvalue(), err.getvalue())


def process(*words: str | Path) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    command = [sys.executable, "-m", "simulations", *map(str, words)]
    plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=plain | {"PYTHONPATH": str(ROOT)})


def forked(*words: str | Path) -> BaseProcess:
    """Start a command in a process that is forked from one which has imported everything."""
    running = FORKS.Process(target=_command, args=("simulations", *map(str, words)))
    running.start()
    return running


def _command(*argv: str) -> None:
    sys.argv = list(argv)
    main()


def tree(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder under these, with size and time of the last change."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return {str(path): (0, 0) if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The rounds of a run without what a clock says."""
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

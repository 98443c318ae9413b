"""Fused against Flower's Ray simulation: one federation, two runtimes, wall seconds, and the same adapter at the end."""

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from client.base import Base
from configs.errors import InputError
from simulations import flower_ray
from simulations.bench import federation, flower_app
from simulations.bench.measure import Figure, Result, agree
from simulations.bench.world import ALPHA, LR, RANK, Size, layouts, random_ids, random_model
from strategies.tree import State

ROUNDS = 2
FEDERATION = Size(hidden=256, layers=6, vocab=8192, users=100, examples=2, tokens=64, blocks=("shared",))
SMALL = replace(FEDERATION, hidden=64, layers=2, vocab=512)  # bound by what surrounds the multiplications
ROOT = Path(__file__).resolve().parents[2]


def prepare(folder: Path, size: Size) -> State:
    """Write the model, the users' tokens and the first adapter; returns the latter."""
    model = random_model(size)
    model.save_pretrained(folder / "model")
    ids = random_ids(size)
    save_file({str(user): ids[user].clone() for user in range(size.users)}, folder / federation.USERS)
    start = dict(layouts(size, Base(model, None, "random"))[0].start)
    save_file(start, folder / federation.START)
    return start


def measure(name: str, size: Size, repetitions: int) -> dict[str, Figure]:
    """Seconds per round after the first, seconds per round of the whole command, and against clients that keep their model."""
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "usual": [], "resident": []}
    with tempfile.TemporaryDirectory(prefix="homing-bench-") as scratch:
        folder = Path(scratch)
        start = prepare(folder, size)
        app = flower_app.write(folder)
        for _ in range(repetitions):
            for side in ("usual", "resident"):
                found["ours"].append(ours(folder))
                found[side].append(theirs(folder, app, size, resident=side == "resident"))
                _same(folder, start)
        found["ours"].append(ours(folder))
    return _figures(name, found)


def ours(folder: Path) -> tuple[float, float]:
    """Run our side as a process of its own: wall seconds of a later round, and of the whole command per round."""
    shutil.rmtree(folder / federation.OURS, ignore_errors=True)
    command = [sys.executable, "-m", "simulations.bench.federation", str(folder), str(ROUNDS)]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **flower_ray.QUIET}, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise InputError(f"bench: our own federation failed: {done.stderr[-1500:]}")
    return later_round(_said(folder, "ours")["marks"]), seconds / ROUNDS


def theirs(folder: Path, app: Path, size: Size, resident: bool) -> tuple[float, float]:
    """Run Flower's side, daemon and all, and end it: wall seconds of a later round, and of the whole command per round."""
    (folder / "flower.json").unlink(missing_ok=True)
    config = {"folder": str(folder), "num-rounds": ROUNDS, "users": size.users, "resident": resident}
    training = {"lr": LR, "rank": RANK, "alpha": int(ALPHA)}
    with flower_ray.flower_home(folder) as env:
        done = flower_ray.run(app, env, size.users, {**config, **training})
    if not (folder / "flower.json").exists():
        raise InputError(f"bench: flwr run left no result: {done.said[-1500:]}")
    return later_round(_said(folder, "flower")["marks"]), done.seconds / ROUNDS


def later_round(marks: list[float]) -> float:
    """Median seconds of a round that is not the first, from the times at which rounds were over."""
    return statistics.median(b - a for a, b in itertools.pairwise(marks[-ROUNDS:]))


def _figures(name: str, found: dict[str, list[tuple[float, float]]]) -> dict[str, Figure]:
    rounds = {side: statistics.median(r for r, _ in pairs) for side, pairs in found.items()}
    whole = {side: statistics.median(w for _, w in pairs) for side, pairs in found.items()}
    after, start = "wall s per round after the first", "wall s per round, start-up included"
    return {
        name: Figure(rounds["ours"], rounds["usual"], after),
        f"{name}_with_startup": Figure(whole["ours"], whole["usual"], start),
        f"{name}_resident": Figure(rounds["ours"], rounds["resident"], after),
    }


def _same(folder: Path, start: State) -> None:
    results = []
    for side in ("ours", "flower"):
        results.append(Result([load_file(folder / f"{side}.safetensors")], statistics.mean(_said(folder, side)["losses"])))
    agree(results[0], results[1], [start])


def _said(folder: Path, side: str) -> dict[str, list[float]]:
    return json.loads((folder / f"{side}.json").read_text())

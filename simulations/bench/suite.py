"""The list of benchmarks, what each should reach, and bench.json with a table for people."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.box import SIMPLE
from rich.table import Table

from configs.errors import unknown
from simulations.bench import dp, dp_ledger, flower, peft_loop
from simulations.bench.measure import Figure
from simulations.bench.operators import top_operators
from simulations.bench.world import COMPUTE, OVERHEAD, TINY, Size
from strategies.files import write_text

TARGETS = {
    "fused_vs_peft_compute": 1.3,
    "fused_vs_peft_overhead": 3.0,
    "fused_vs_pooled": 0.9,
    "fused_vs_flower_ray": 10.0,
    **dict.fromkeys(("dp_step", "dp_step_core", "dp_step_mixed", "dp_step_small", "dp_step_small_core", "dp_step_small_mixed"), 0.87),
    "ledger_round": 1.0,
    "ledger_round_poisson": 1.0,
}  # 0.87 is a cost of 1.15


class Benchmark(NamedTuple):
    """One measurement and the figures that come out of it."""

    names: tuple[str, ...]  # the first one names the measurement
    measure: Callable[[str, Size, int], dict[str, Figure]]  # (first name, size, repetitions) -> figures
    size: Size
    quick: Size | None  # None: left out of a quick run
    repetitions: int
    about: str


BENCHMARKS = (
    Benchmark(
        ("fused_vs_peft_compute", "fused_vs_peft_compute_lean"), peft_loop.sequential, COMPUTE, TINY, 7,
        "one user after the other under plain PEFT; bound by multiplications",
    ),
    Benchmark(
        ("fused_vs_peft_overhead", "fused_vs_peft_overhead_lean"), peft_loop.sequential, OVERHEAD,
        replace(TINY, users=8, examples=1), 7, "the same, bound by the cost of calls",
    ),
    Benchmark(
        ("fused_vs_pooled",), peft_loop.pooled, COMPUTE, TINY, 5,
        "an adapter for each user, against one adapter for all in passes of equal size",
    ),
    Benchmark(
        ("fused_vs_flower_ray", "fused_vs_flower_ray_with_startup", "fused_vs_flower_ray_resident"), flower.measure,
        flower.FEDERATION, None, 1, "two rounds of 100 users, against flwr run with a usual app",
    ),
    Benchmark(
        ("fused_vs_flower_ray_small", "fused_vs_flower_ray_small_with_startup", "fused_vs_flower_ray_small_resident"),
        flower.measure, flower.SMALL, None, 1, "the same on a model so small that its multiplications cost little",
    ),
    Benchmark(
        ("dp_step", "dp_step_core", "dp_step_mixed"), dp.steps, dp.COMPUTE, TINY, 5,
        "DP-SGD against the same step without; bound by multiplications",
    ),
    Benchmark(
        ("dp_step_small", "dp_step_small_core", "dp_step_small_mixed"), dp.steps, dp.SMALL, None, 25,
        "the same on a small model",
    ),
    Benchmark(
        ("opacus_hooks", "opacus_ghost"), dp.opacus, dp.COMPUTE, TINY, 3,
        "DP-SGD against Opacus on PEFT, one user after the other",
    ),
    Benchmark(("opacus_hooks_small", "opacus_ghost_small"), dp.opacus, dp.SMALL, None, 5, "the same on a small model"),
    Benchmark(
        ("ledger_round", "ledger_round_poisson"), dp_ledger.rounds, replace(TINY, users=dp_ledger.USERS), replace(TINY, users=50), 3,
        "a round of 10,000 users in the ledger, each with a history of their own, against the second that it may take",
    ),
)  # fmt: skip


def run(only: str = "", quick: bool = False, done: Callable[[dict[str, Figure]], None] = lambda _: None) -> dict[str, Figure]:
    """Measure, all or the benchmark that a name belongs to. Raises `InputError` for an unknown name.

    ``done`` is called with all figures so far after each benchmark: some take minutes.
    """
    names = [name for benchmark in BENCHMARKS for name in benchmark.names]
    if only and only not in names:
        raise unknown("benchmark", only, names)
    found: dict[str, Figure] = {}
    for benchmark in BENCHMARKS:
        size = benchmark.quick if quick else benchmark.size
        if size is not None and (not only or only in benchmark.names):
            found |= benchmark.measure(benchmark.names[0], size, 1 if quick else benchmark.repetitions)
            done(found)
    return found


def write(found: Mapping[str, Figure], path: Path) -> None:
    """Write bench.json: name -> ours, theirs, ratio (above 1: ours is better), unit."""
    tree = {name: {"ours": f.ours, "theirs": f.theirs, "ratio": f.ratio, "unit": f.unit} for name, f in found.items()}
    write_text(path, json.dumps(tree, indent=2) + "\n")


def table(found: Mapping[str, Figure], quick: bool = False, busy: float = 0.0) -> Table:
    """The figures for a person. A quick run is too small for its ratios to mean anything, so it has no targets.

    ``busy`` is how many processes kept the machine busy before: wall times beside other work say little.
    """
    title = "Quick run: sizes too small to judge by" if quick else f"CPU s: one thread; wall s: {torch.get_num_threads()} threads"
    caption = f"ratio above 1: ours is better; load before the run: {busy:.1f}"
    shown = Table(title=title, caption=caption, box=SIMPLE)
    shown.add_column("benchmark", no_wrap=True)
    for column in ("ours", "theirs", "ratio", "target"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, figure in found.items():
        target = None if quick else TARGETS.get(name)
        colour = "" if target is None else "[green]" if figure.ratio >= target else "[red]"
        shown.add_row(f"{name}\n  [dim]{figure.unit}[/]", f"{figure.ours:.3g}", f"{figure.theirs:.3g}",
                      f"{colour}{figure.ratio:.2f}", "" if target is None else f">= {target:g}")  # fmt: skip
    return shown


def operators(only: str = "", quick: bool = False) -> str:
    """The profile of one fused step at the size of a benchmark; of the first one if none is named."""
    chosen = next((b for b in BENCHMARKS if only in b.names), BENCHMARKS[0])
    size = (chosen.quick or TINY) if quick else chosen.size
    return f"one fused step: {asdict(size)}\n{top_operators(size)}"

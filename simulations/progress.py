"""What a person sees while a run is going on: a bar on a terminal, elsewhere about twenty plain lines, and whatever is not as usual."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from server.report.controls import words
from server.rounds import Observer

LINES = 20


@contextmanager
def watch(console: Console, name: str, rounds: int, done: int = 0) -> Iterator[Observer]:
    """Yield an observer of rounds that keeps the console up to date.

    ``done`` is how many of the run's ``rounds`` an earlier process has finished. Rounds beyond them are of controls.
    """
    whose = _whose(name, rounds, done)
    if not console.is_interactive:
        step = max(1, rounds // LINES)

        def tell(row: dict[str, Any]) -> None:
            label = whose(row)
            if row["round"] % step == 0 or row["round"] == rounds or _scored(row) or row["dropped"]:
                _print(console, f"{label} {line(row)}")

        yield tell
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[now]}", markup=False))  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=rounds, completed=done, now="loading the model and the users")

        def observe(row: dict[str, Any]) -> None:
            label = whose(row)
            bar.update(task, description=label, now=speed(row))
            if label == name:
                bar.update(task, completed=row["round"])
            if _scored(row):
                _print(bar.console, line(row))

        yield observe


def line(row: dict[str, Any]) -> str:
    """A round in one line: loss in training, nll on the validation split, speed."""
    said = f"round {row['round']}: loss {'unknown' if row['train_loss'] is None else format(row['train_loss'], '.4f')}"
    for when, rows in _scored(row):
        scores = [f"{words(control)} {found['nll']:.4f}" for control, found in rows.items() if "nll" in found]
        said += f", validation nll{when} {', '.join(scores)}" if scores else ""
    dropped = sum(row["dropped"].values())
    return f"{said}; {speed(row)}" + (f"; {dropped} releases dropped" if dropped else "")


def _scored(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A round's scores, those before it first."""
    both = ((" before it", row.get("validation_before")), ("", row.get("validation")))
    return [(when, rows) for when, rows in both if rows]


def speed(row: dict[str, Any]) -> str:
    """Users and tokens trained in a second."""
    seconds = max(row["seconds"].get("train", 0.0), 1e-9)
    return f"{row['users'] / seconds:.1f} users/s, {row['tokens'] / seconds:.0f} tokens/s"


def _whose(name: str, rounds: int, done: int) -> Callable[[dict[str, Any]], str]:
    """A run's own rounds come first, each once; then those of controls that are trained."""
    left = rounds - done

    def whose(_row: dict[str, Any]) -> str:
        nonlocal left
        left -= 1
        return name if left >= 0 else f"{name}, a control"

    return whose


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

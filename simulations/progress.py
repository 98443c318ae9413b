"""What a person sees while a run is going on: a bar on a terminal, one plain line a round elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from server.rounds import Observer


@contextmanager
def watch(console: Console, rounds: int, name: str) -> Iterator[Observer]:
    """Yield an observer of rounds that keeps the console up to date."""
    if not console.is_terminal:
        yield lambda row: console.print(f"{name} {line(row)}", highlight=False, soft_wrap=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[now]}"))  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=rounds, now="loading the model and the users")

        def observe(row: dict[str, Any]) -> None:
            bar.update(task, advance=1, now=line(row))

        yield observe


def line(row: dict[str, Any]) -> str:
    """A round in one line."""
    seconds = max(row["seconds"].get("train", 0.0), 1e-9)
    said = f"round {row['round']}: loss {row['train_loss']:.4f}"
    for control, found in row.get("validation", {}).items():
        said += f", {control.replace('_', ' + ', 1) if control == 'shared_private' else control} {found['nll']:.4f}"
    said += f"; {row['users'] / seconds:.1f} users/s, {row['tokens'] / seconds:.0f} tokens/s"
    dropped = sum(row["dropped"].values())
    return said + (f"; {dropped} releases dropped" if dropped else "")


def stamp() -> str:
    """The local time, for names and lines."""
    return time.strftime("%H:%M:%S")

"""What a run leaves behind once its last round is over: the users' table, where the time went, and the report."""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

from server.checkpoint import Checkpoint
from server.report import write
from strategies.files import write_text


def finish(folder: Path, table: list[dict[str, Any]], clock: dict[str, float], state: Checkpoint) -> Path:
    """Write users.csv, timing.json, summary.json and report.html; returns the page's path.

    ``clock`` holds when each part began, in order, and last when the last one was over.
    """
    tabulate(folder, table, clock, state)
    return write.write(folder)


def tabulate(folder: Path, table: list[dict[str, Any]], clock: dict[str, float], state: Checkpoint) -> None:
    """As `finish`, the tables only."""
    write_text(folder / "users.csv", users_csv(table))
    write_text(folder / "timing.json", json.dumps(timing(clock, state)))


def users_csv(table: list[dict[str, Any]]) -> str:
    """The users' table as CSV; an undefined number is an empty cell."""
    columns = list(dict.fromkeys(("user", "seen", "train", "test", *(key for row in table for key in row))))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def timing(clock: dict[str, float], state: Checkpoint) -> dict[str, Any]:
    """Seconds by part, tokens, and tokens per second of training."""
    marks = list(clock.items())
    seconds = {name: later - at for (name, at), (_, later) in itertools.pairwise(marks) if name != "rounds"}
    for row in state.rows:
        for part, value in row["seconds"].items():
            seconds[part] = seconds.get(part, 0.0) + value
    tokens = sum(row["tokens"] for row in state.rows)
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / max(seconds.get("train", 0.0), 1e-9)}

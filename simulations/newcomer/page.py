"""What became of new users, as Markdown: rows by how many examples they have, over one run or several."""

import statistics
from collections.abc import Sequence
from typing import Any

from server.report.tables import markdown_rows
from simulations.newcomer.measure import START, USUAL

Row = dict[str, Any]
WORDS = {
    "base": "base", "majority": "majority", "user_bias": "user bias over shared", "shared": "shared alone",
    "local_only": "local only, from scratch", USUAL: "shared + private, the usual way",
}  # fmt: skip
MEANING = {"nll": "Nats, lower is better", "auc": "AUC, higher is better"}


def render(found: Sequence[Row]) -> str:
    """The runs' tables: one for each metric, what is saved against the usual way, and seconds and bytes of a start."""
    first = found[0]
    seeds = ", ".join(str(run["seed"]) for run in found)
    people = ", ".join(str(run["newcomers"]) for run in found)
    counts = list(first["have"])
    text = [
        f"New users ({people}) of runs with seeds {seeds}, scored on the {first['part']} split. "
        "A cell is the mean over users, then over runs (lowest to highest run)."
    ]
    have = "; ".join(f"{n}: {', '.join(str(run['have'][n]) for run in found)}" for n in counts)
    text += ["", f"New users who have as many examples (the others have all of theirs): {have}.", ""]
    for metric, meaning in MEANING.items():
        if all(metric in run["rows"]["shared"][counts[0]] for run in found):
            text += [f"{meaning}:", "", *_table(found, counts, metric), ""]
    text += [
        f"Nats against {WORDS[USUAL]}; below zero is better. In brackets: in how many runs the 95 % interval over users lies below "
        "zero, and in how many above:",
        "",
        *_gains(found, counts),
        "",
    ]
    text += ["A start, in seconds of CPU (and by the clock), median over new users of the slowest run, by examples:", ""]
    return "\n".join([*text, *_starts(found, counts), ""])


def _table(found: Sequence[Row], counts: Sequence[int], metric: str) -> list[str]:
    body = [(_said(name), *(_cell([run["rows"][name][n].get(metric) for run in found]) for n in counts)) for name in found[0]["rows"]]
    return markdown_rows(("examples", *map(str, counts)), _without_twins(body), 1)


def _without_twins(body: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without the start of `shared` where it is what the shared adapter is alone: for all kinds but soft prompts."""
    alone = next((row[1:] for row in body if row[0] == WORDS["shared"]), None)
    return [row for row in body if row[0] != f"shared{START}" or row[1:] != alone]


def _gains(found: Sequence[Row], counts: Sequence[int]) -> list[str]:
    rows = [name for name in found[0]["rows"] if name not in (USUAL, "base")]
    body = [(_said(name), *(_gain([run["against_usual"][name][n] for run in found]) for n in counts)) for name in rows]
    return markdown_rows(("examples", *map(str, counts)), body, 1)


def _starts(found: Sequence[Row], counts: Sequence[int]) -> list[str]:
    def slowest(name: str, n: int, which: str) -> str:
        return f"{max(run['seconds'][name][n][which] for run in found):.3f}"

    body = [
        (name, f"{found[0]['bytes'][name]:,}", *(f"{slowest(name, n, 'cpu_median')} ({slowest(name, n, 'median')})" for n in counts))
        for name in found[0]["seconds"]
    ]
    return markdown_rows(("way", "bytes sent", *map(str, counts)), body, 1)


def _said(name: str) -> str:
    return WORDS.get(name, name)


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ({min(known):.4f} to {max(known):.4f})" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.4f}{spread}"


def _gain(gains: Sequence[Row]) -> str:
    below, above = sum(g["ci95"][1] < 0 for g in gains), sum(g["ci95"][0] > 0 for g in gains)
    return f"{statistics.fmean(g['mean'] for g in gains):+.4f} ({below}, {above})"

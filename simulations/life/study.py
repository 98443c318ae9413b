"""Ways to keep what was learnt, side by side over seeds: what each forgets, learns and costs."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.errors import unknown
from configs.scenario import Scenario, scenario_hash
from simulations.life.page import markdown
from simulations.life.record import Record
from strategies.files import write_text
from strategies.keeping import KEEPING

HEAD = ("keep", "AP", "forgetting", "worst tenth", "BWT", "FWT", "prequential", "seconds", "tokens", "cost")


def lives(scenario: Scenario, names: Sequence[str], seeds: int, folder: Path) -> list[tuple[Scenario, Path]]:
    """The lives of a study and their folders. A name may have options: ``ewc:strength=10``."""
    found = []
    for name in names:
        keep, _, said = name.partition(":")
        if keep not in KEEPING:
            raise unknown("life.keep", keep, KEEPING)
        options = {key: float(value) for key, _, value in (item.partition("=") for item in said.split("+") if item)}
        for seed in range(scenario.seed, scenario.seed + seeds):
            one = replace(scenario, seed=seed, life=replace(scenario.life, keep=keep, keep_options=options))
            found.append((one, folder / f"{keep}-{scenario_hash(one)}"))
    return found


def write(scenario: Scenario, records: Sequence[Record], folder: Path) -> str:
    """Write the table into ``folder/live.md`` and return it."""
    text = f"{scenario.name}, {scenario.life.periods} periods, seeds {sorted({r['seed'] for r in records})}:\n\n{table(records)}"
    write_text(folder / "live.md", text)
    return text


def table(records: Sequence[Record]) -> str:
    """A line for each way: means over seeds (lowest to highest), and its cost, in tokens, as a multiple of the first line's."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for each in records:
        groups.setdefault((each["keep"], said(each)), []).append(each)
    first = _mean(next(iter(groups.values())), "tokens")
    return markdown([_line(keep, options, group, first) for (keep, options), group in groups.items()], HEAD)


def said(found: Record) -> str:
    """The options of a way to keep, in words."""
    return ", ".join(f"{name} {value:g}" for name, value in found["keep_options"].items())


def _line(keep: str, options: str, group: Sequence[Record], first: float) -> tuple[str, ...]:
    seconds, tokens = _mean(group, "seconds"), _mean(group, "tokens")
    scores = [_spread([each[name] for each in group]) for name in ("ap", "forgetting")]
    worst = _spread([each["worst_decile"]["forgetting"] for each in group])
    rest = [_spread([each[name] for each in group]) for name in ("bwt", "fwt")]
    before = _spread([statistics.fmean(x for x in each["prequential"] if x is not None) for each in group])
    cost = (f"{seconds:.1f}", f"{tokens:.2g}", f"{tokens / first:.2f}")
    return (f"{keep} ({options})" if options else keep, *scores, worst, *rest, before, *cost)


def _mean(group: Sequence[Record], name: str) -> float:
    """Of a number by period: over lives, of its sum over a life."""
    return statistics.fmean(sum(each[name]) for each in group)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else mean

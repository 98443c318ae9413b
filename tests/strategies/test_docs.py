"""The page about strategies runs, and its table is the registry."""

import doctest
import inspect
from pathlib import Path

import pytest

from simulations.listing import flags
from strategies.aggregators import AGGREGATORS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies.md"


def row(name: str) -> str:
    """A line of the table."""
    built = AGGREGATORS[name]()
    trained, *said = flags(built)
    options = ", ".join(f"{p.name} = {p.default:g}" for p in inspect.signature(AGGREGATORS[name]).parameters.values())
    return f"| {name} | {trained} | {', '.join(said)} | {options} | {built.paper} |"


def test_the_table_is_the_registry() -> None:
    table = PAGE.read_text().partition("|---|---|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [row(name) for name in AGGREGATORS]


def test_the_examples_run_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGGREGATORS, "even", AGGREGATORS["fedit"])  # is taken out again
    done = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL | doctest.ELLIPSIS)
    assert done.attempted > 8 and not done.failed

"""The page about strategies runs, and its table of schemes is their registry."""

import doctest
import inspect
from pathlib import Path

import pytest

from simulations.listing import turns
from strategies.aggregators import AGGREGATORS
from strategies.schemes import SCHEMES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies.md"


def scheme_row(name: str) -> str:
    """A line of the table of schemes."""
    built = SCHEMES[name]()
    options = ", ".join(f"{p.name} = {p.default:g}" for p in inspect.signature(SCHEMES[name]).parameters.values())
    needs = ", ".join(f"{field} = {value}" for field, value in built.needs)
    return f"| {' | '.join((name, *turns(built), options, needs, built.paper))} |"


def table(ruler: str) -> list[str]:
    """The lines below a ruler."""
    return PAGE.read_text().partition(f"\n{ruler}\n")[2].partition("\n\n")[0].splitlines()


def test_the_table_of_schemes_is_their_registry() -> None:
    assert table("|---|---|---|---|---|---|---|") == [scheme_row(name) for name in SCHEMES]


def test_the_examples_run_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGGREGATORS, "even", AGGREGATORS["fedit"])  # are taken out again
    monkeypatch.setitem(SCHEMES, "borrowed", SCHEMES["dual"])
    done = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL | doctest.ELLIPSIS)
    assert done.attempted > 8 and not done.failed

"""What can be named, for programs: nothing that is registered is missing, and each says what it is."""

import json
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest

from client.adapters import KINDS, PROMPTS
from configs.scenario import Privacy, UserLevel
from simulations import catalogue
from strategies.aggregators import AGGREGATORS
from strategies.base import Aggregator, Scheme
from strategies.editors import EDITORS
from strategies.keeping import KEEPING
from strategies.privacy import accounting
from strategies.schemes import SCHEMES
from tests.simulations.command import call

UNREADABLE = {"init", "apply", "owner"}  # fields that are always functions


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the command prints."""
    said = call("list", "--json")
    assert (said.code, said.err) == (0, "")
    return json.loads(said.out)


def test_every_registered_name_is_there(found: dict[str, Any]) -> None:
    assert list(found["aggregators"]) == list(AGGREGATORS) and list(found["schemes"]) == list(SCHEMES)
    assert list(found["keeping"]) == list(KEEPING) and list(found["editors"]) == list(EDITORS)
    assert found["private_kinds"].keys() == {*KINDS, *PROMPTS}
    assert found["mechanisms"].keys() == {*get_args(get_type_hints(UserLevel)["mechanism"]), "dpsgd", "discrete"}
    assert found["accountants"].keys() == set(get_args(get_type_hints(Privacy)["accountant"]))
    assert {name for name, each in found["accountants"].items() if not each["refused"]} == set(accounting.ACCOUNTANTS)


def test_each_says_what_it_is_and_names_its_paper(found: dict[str, Any]) -> None:
    for group, entries in found.items():
        for name, entry in entries.items():
            assert entry["about"], f"{group}: {name}"
            assert entry["paper"] or name == "mixed", f"{group}: {name}"
    assert found["private_kinds"]["core"]["paper"] == "arXiv 2405.17604"
    assert found["mechanisms"]["local"]["paper"] == found["mechanisms"]["gaussian"]["paper"] == "arXiv 1710.06963"


@pytest.mark.parametrize(("group", "contract"), [("aggregators", Aggregator), ("schemes", Scheme)])
def test_every_flag_of_a_contract_is_there_with_its_value(found: dict[str, Any], group: str, contract: type[Any]) -> None:
    registry = AGGREGATORS if contract is Aggregator else SCHEMES
    for name, entry in found[group].items():
        made = registry[name]()
        for field in set(contract._fields) - UNREADABLE:
            value = getattr(made, field)
            if isinstance(value, bool | int | float | str):
                assert entry[field] == value, f"{name}.{field}"
            assert field in entry, f"{name}.{field}"
    assert found["schemes"]["ditto"]["options"] == {"pull": 0.1} and found["schemes"]["ditto"]["twins"] == ["private"]
    assert found["aggregators"]["rolora"]["factors"][0] != found["aggregators"]["rolora"]["factors"][1]


def test_a_flag_that_is_added_later_needs_no_line_here() -> None:
    class Inner(NamedTuple):
        moves: tuple[str, ...] = ("shared",)
        view: Any = len

    class Entry(NamedTuple):
        colour: str = "blue"
        phases: tuple[Inner, ...] = (Inner(),)
        does: Any = print

    assert catalogue.plain(Entry()) == {"colour": "blue", "phases": [{"moves": ["shared"]}]}

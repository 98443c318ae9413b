"""What can be named, for programs."""

import json

from client.adapters import KINDS
from strategies.aggregators import AGGREGATORS
from strategies.schemes import SCHEMES
from tests.simulations.command import call


def test_every_registered_name_is_listed_as_json_with_its_flags_and_paper() -> None:
    found = json.loads(call("list", "--json").out)
    assert list(found["aggregators"]) == list(AGGREGATORS) and list(found["schemes"]) == list(SCHEMES)
    assert found["private_kinds"].keys() == {*KINDS, "prompt"}
    assert found["mechanisms"] == ["gaussian", "adaptive", "banded", "local"] and "pld" in found["accountants"]
    for name, entry in found["aggregators"].items():
        built = AGGREGATORS[name]()
        assert (entry["linear"], entry["exact"], entry["paper"]) == (built.linear, built.exact, built.paper) and entry["about"]
    assert found["schemes"]["ditto"]["options"] == {"pull": 0.1} and found["schemes"]["ditto"]["twins"] == ["private"]
    assert all(entry["paper"] and entry["phases"] for entry in found["schemes"].values())

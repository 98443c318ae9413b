"""Everything that a scenario can choose, for programs: each entry with its flags, its options and where it is from.

It is read from the registries and contracts themselves: a flag is a field of an entry's `NamedTuple`, so a new one is here without a
line. Functions are left out; of one that an aggregator may lack it is said whether it is there.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from client import dpsgd
from client.adapters import KINDS, PROMPTS
from simulations.listing import first_line
from strategies.aggregators import AGGREGATORS
from strategies.base import Aggregator, Scheme
from strategies.editors import EDITORS
from strategies.editors.contract import Editor
from strategies.keeping import KEEPING
from strategies.keeping.contract import Keeping
from strategies.migrators import MIGRATORS
from strategies.migrators.terms import Migrator
from strategies.newcomers import NEWCOMERS
from strategies.newcomers.contract import Way
from strategies.privacy import clipping, discrete, local, matrix, user_level
from strategies.schemes import SCHEMES
from strategies.unlearning import WAYS
from strategies.unlearning.contract import Way as Unlearning

Entry = dict[str, Any]
ARXIV = re.compile(r"arXiv:?\s+(\d{4}\.\d{4,5})")


class Mechanism(NamedTuple):
    """How noise is added, and what that asks for."""

    setting: str  # what of a scenario chooses it
    guarantee: str
    trusts_server: bool  # the server sees what is not noised yet
    secure: bool  # can be had together with privacy.secure
    linear_only: bool  # the aggregator must need no more than the sum of releases
    described: tuple[ModuleType, ...]


class Accountant(NamedTuple):
    """How costs are added up."""

    paper: str
    about: str
    refused: bool = False


MECHANISMS: Mapping[str, Mechanism] = {
    "dpsgd": Mechanism("privacy.guarantee=example", "example", False, True, False, (dpsgd,)),
    "gaussian": Mechanism("privacy.user.mechanism=gaussian", "user", True, True, True, (user_level,)),
    "adaptive": Mechanism("privacy.user.mechanism=adaptive", "user", True, False, True, (clipping,)),
    "banded": Mechanism("privacy.user.mechanism=banded", "user", True, False, True, (matrix,)),
    "local": Mechanism("privacy.user.mechanism=local", "user", False, False, False, (local, user_level)),
    "discrete": Mechanism("privacy.secure=true", "user", False, True, True, (discrete,)),
}
ACCOUNTANTS: Mapping[str, Accountant] = {
    "pld": Accountant("arXiv 2207.04380", "the privacy loss distribution, rounded up; closed form where everybody takes part"),
    "prv": Accountant("arXiv 2106.02848", "privacy loss as a random variable, the upper end of its interval"),
    "rdp": Accountant("arXiv 1908.10530", "Renyi divergence over many orders: never too small, often too large"),
    "gdp": Accountant("arXiv 1911.11607", "a central limit: it can be smaller than the truth", refused=True),
}


def as_json() -> str:
    """Every aggregator, scheme, way to keep, way to begin, private kind, privacy mechanism and accountant by its name, as JSON."""
    kinds = {name: kind.init for name, kind in KINDS.items()} | PROMPTS
    tree = {
        "aggregators": {name: _made(make) | _turns(make()) for name, make in AGGREGATORS.items()},
        "schemes": {name: _made(make) for name, make in SCHEMES.items()},
        "migrators": {name: _made(make) for name, make in MIGRATORS.items()},
        "keeping": {name: _made(make) for name, make in KEEPING.items()},
        "editors": {name: _made(make) for name, make in EDITORS.items()},
        "newcomers": {name: _made(make) for name, make in NEWCOMERS.items()},
        "unlearning": {name: _made(make) for name, make in WAYS.items()},
        "private_kinds": {name: _described(_module(made)) for name, made in kinds.items()},
        "mechanisms": {name: plain(each) | _described(*each.described) for name, each in MECHANISMS.items()},
        "accountants": {name: plain(each) for name, each in ACCOUNTANTS.items()},
    }
    return json.dumps(tree, indent=1)


def plain(found: Any) -> Any:
    """What JSON can hold of an entry: its fields by name, entries within it likewise, without functions and modules."""
    if isinstance(found, tuple):
        fields = getattr(found, "_asdict", None)
        if fields is None:
            return [plain(item) for item in found]
        return {name: plain(value) for name, value in fields().items() if not callable(value) and not _holds_modules(value)}
    return found


def _made(make: Callable[..., Aggregator | Scheme | Migrator | Keeping | Editor | Way | Unlearning]) -> Entry:
    """The fields of an entry, what options it takes with what they are unless they are set, and the first line about it."""
    options = {option.name: option.default for option in inspect.signature(make).parameters.values()}
    return plain(make()) | {"options": options, "about": first_line(make)}


def _turns(aggregator: Aggregator) -> Entry:
    """What is trained in odd and in even rounds, and whether a node does anything to a release of its own accord."""
    return {"factors": [aggregator.factors(1), aggregator.factors(2)], "at_home": aggregator.at_home is not None}


def _described(*modules: ModuleType) -> Entry:
    """The first line about it, and the first paper that its files name; none where it is this project's own."""
    papers = [found.group(1) for module in modules if (found := ARXIV.search(module.__doc__ or ""))]
    return {"about": first_line(modules[0]), "paper": f"arXiv {papers[0]}" if papers else ""}


def _module(made: object) -> ModuleType:
    found = inspect.getmodule(made)
    assert found
    return found


def _holds_modules(value: object) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, ModuleType) for item in value)

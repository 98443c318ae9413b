"""One user's model out of a run, in PEFT's format."""

import csv
from dataclasses import replace
from pathlib import Path

from client import base as bases
from client import data
from client.adapters.fisher import fitted, needs_texts
from client.adapters.layout import Layout
from client.editing import records
from client.editing.bench import placed
from client.peft_io import save_user
from client.private import PrivateStore
from client.split import Split, split
from client.store import keys, origin
from client.store.manifest import PRIVATE
from client.tower import Tower
from configs.errors import InputError, close, did_you_mean
from configs.scenario import Scenario
from server import checkpoint
from simulations.edit.place import find, refuse_stranger
from simulations.folders import of_flower
from strategies.keeping.contract import MEMORY
from strategies.tree import State


def export_user(folder: Path, user: str, out: Path, base: bases.Base | None = None, edits: bool = True, key: str = "") -> str:
    """Write the model that a user has after a run's last round to ``out`` and return a text that says how to load it.

    ``folder``: a run's or a life's, or a node's home, whose store ``key`` opens. ``edits``: with those that the user has made, which
    are not noised; the text says so. A user who was kept out of training gets the shared adapter alone, as the report scores them.
    Of a life it is the model after the last round of its last period, with all that is kept of earlier ones applied.
    Raises `InputError`.
    """
    at = find(folder)
    scenario, last = at.scenario, at.last
    listed = users(at.folder) if at.home == at.folder else _ever(at.home)
    if listed is not None:
        _check(user, listed, folder)
    base = base or bases.load(scenario.model, "cpu")
    if listed is None:
        found = data.load(scenario.data, base.tokenizer, scenario.seed, scenario.life)
        listed = dict.fromkeys(found.users, True) | dict.fromkeys(found.unseen, False)
        _check(user, listed, folder)
    parts = split(scenario, base)
    sealed = keys.read(key)
    store = PrivateStore(at.private, sealed)
    if listed[user] and of_flower(folder) and parts.has_private:
        raise InputError(f"{folder} holds a run of Flower: on the node that keeps '{user}', give export HOME {user}, with its home")
    if listed[user]:
        refuse_stranger(at, store, parts, user)
    if listed[user] and parts.scheme.references:
        raise InputError(f"scheme '{scenario.scheme}' weighs a user's adapters anew for each text, and no one adapter does that")
    received: State = parts.start() | {parts.key(n): v for n, v in last.shared.items()}
    here = origin.of(scenario.seed, base, parts)
    checkpoint.refuse_other(folder, last, here)
    stored = store.parts(user, last.round + 1, here)
    own = {**stored.get(PRIVATE, {}), **stored.get(MEMORY, {})}
    layouts, state = parts.model(received | parts.own(parts.start(), received) | own)
    if not listed[user]:
        layouts, state = tuple(x for x in parts.layouts if x.block == "shared"), received
    if not layouts:
        raise InputError(f"'{user}' took no part in training, and the scheme '{scenario.scheme}' shares nothing")
    stand = records.read(records.opened(at.home, sealed), user, here) if edits and listed[user] else []
    layouts = _fitted(scenario, base, parts, layouts)
    if not stand:
        return save_user(base, layouts, state, out, f"The model of user {user}")
    added, change = placed(base, records.module_of(stand), records.merged(stand))
    title = f"The model of user {user}, with {len(stand)} edit{'s' * (len(stand) > 1)}, which no guarantee of privacy covers"
    return save_user(base, (*layouts, added), state | change, out, title)


def _ever(life: Path) -> dict[str, bool] | None:
    """`users` of all of a life's periods, as not everybody is in each."""
    found: dict[str, bool] = {}
    for period in sorted(life.glob("period-*")):
        for user, seen in (users(period) or {}).items():
            found[user] = seen or found.get(user, False)
    return found or None


def users(folder: Path) -> dict[str, bool] | None:
    """The users of a finished run, and whether each took part in training; None while there is no users.csv."""
    path = folder / "users.csv"
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        return {row["user"]: row["seen"] == "True" for row in csv.DictReader(file)}


def _check(user: str, listed: dict[str, bool], folder: Path) -> None:
    if user not in listed:
        near = did_you_mean(close(user, listed))
        raise InputError(f"{folder} has no user '{user}'{near}")


def _fitted(scenario: Scenario, base: bases.Base, parts: Split, layouts: tuple[Layout, ...]) -> tuple[Layout, ...]:
    """Fit factors to the public texts again, where they were; nothing else of the data is needed."""
    if not any(map(needs_texts, layouts)):
        return layouts
    found = data.load(scenario.data, base.tokenizer, scenario.seed, scenario.life)
    tower = Tower(base, parts.layouts, replace(scenario.engine, cache="none"))
    try:
        return tuple(fitted(x, tower, found.public, found.label_ids) for x in layouts)
    finally:
        tower.close()

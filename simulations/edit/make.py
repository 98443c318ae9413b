"""What the commands on edits do. A user is held while their edits change, and the store is written once, at the end."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from client.data.types import Encoded
from client.editing import records
from client.editing.bench import Asked, Bench
from client.editing.records import Edit
from client.private import PrivateStore
from client.store import keys
from client.store.manifest import now
from configs.errors import InputError
from simulations.edit import lines, place
from strategies.tree import State


@dataclass(frozen=True)
class Made:
    """An edit and what it did."""

    edit: Edit
    before: float  # probability of the new answer, a mean over its prompts
    after: float
    holds: bool  # the new answer is now the likeliest, at all of its prompts


def add(run: Path, user: str, path: Path, editor: str, options: Mapping[str, float], layer: int, key: str) -> tuple[list[Made], float]:
    """Learn the edits of a file and let them stand beside those that do; also the seconds that this took, without loading."""
    place.refuse_flower(run)
    asked, at = lines.read(path), place.find(run)
    records.built(editor, options)
    store = records.opened(at.home, keys.read(key))
    with store.held([user]), place.bench(at, key, layer) as bench:
        place.refuse_user(at, bench, user)
        before = records.read(store, user, bench.node.origin)
        records.module_of(before, bench.module)
        wanted = {prompts: (answer, e) for prompts, answer, e in (lines.resolve(line, bench.node) for line in asked)}
        began, state = time.perf_counter(), bench.user(user, at.task)
        states = bench.learn(
            records.built(editor, options),
            [Asked(state, e, (at.scenario.seed, user, "edit")) for _, e in wanted.values()],
            ordinary(bench, user),
        )
        made = now()
        new = [
            Edit(prompts, answer, editor, options, bench.module, made, found)
            for (prompts, (answer, _)), found in zip(wanted.items(), states, strict=True)
        ]
        stand = records.joined(before, new)
        found = judged(bench, state, stand, [e for _, e in wanted.values()], new)
        records.write(store, user, stand, bench.node.origin)
        return found, time.perf_counter() - began


def ordinary(bench: Bench, user: str) -> Sequence[Encoded]:
    """Texts that edits are to leave alone: every second one of those that belong to nobody, else the user's own and nobody else's."""
    return bench.node.dataset.public[::2] or bench.node.dataset.users[user].train


def judged(
    bench: Bench, user: State, stand: Sequence[Edit], examples: Sequence[tuple[Encoded, ...]], new: Sequence[Edit]
) -> list[Made]:
    """What new edits did, with all that stand applied."""
    change, found = records.merged(stand), list[Made]()
    for edit, some in zip(new, examples, strict=True):
        old, now_ = (bench.answers([user], [x], [some])[0] for x in ({}, change))
        before, after = (sum(x.chance() for x in answers) / len(answers) for answers in (old, now_))
        found.append(Made(edit, before, after, all(x.right() for x in now_)))
    return found


def listing(run: Path, user: str, key: str) -> Table:
    """A user's edits."""
    _, stand = _standing(run, user, key)
    table = Table(header_style="bold", box=None)
    for column in ("id", "prompt", "answer", "editor", "module", "made"):
        table.add_column(column, no_wrap=True)
    for edit in stand:
        first, *rest = edit.prompts
        shown = f"{first} and {len(rest)} more" if rest else first
        table.add_row(*map(Text, (edit.id, shown, edit.answer, edit.editor, edit.module, edit.made)))
    return table


def undo(run: Path, user: str, name: str, key: str) -> str:
    """Take one back."""
    store, _ = _standing(run, user, key)
    with store.held([user]):
        left = records.without(records.read(store, user), name)
        records.write(store, user, left)
    return f"{name} is taken back; {len(left)} of user '{user}' stand"


def _standing(run: Path, user: str, key: str) -> tuple[PrivateStore, list[Edit]]:
    place.refuse_flower(run)
    store = records.opened(place.find(run).home, keys.read(key))
    stand = records.read(store, user)
    if not stand:
        shelf = store.shelf()
        users = ", ".join(sorted(said.user for said in shelf.manifests())) if shelf else ""
        raise InputError(f"user '{user}' has no edit in {run}" + (f" (known: {users})" if users else ""))
    return store, stand

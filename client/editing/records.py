"""A user's edits as a store of their own keeps them: beside the private adapters, in a folder that no training opens.

Each write is a version that holds all that stand, under a manifest of its own, so a kill leaves the edits of before or those of after.
Of what an edit took back held, no file is left. The words of an edit lie in the same file as its tensors, sealed where the store is.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from client.private import PrivateStore
from client.store import disk, origin
from client.store.keys import Key
from client.store.manifest import Made, Origin
from client.store.places import EDITS
from configs.errors import InputError, unknown
from strategies.editors import EDITORS
from strategies.editors.contract import A, B, Editor
from strategies.registry import make
from strategies.tree import State

KIND, WORDS = "edits", "words"  # the kind of file; the tensor that holds an edit's words


@dataclass(frozen=True)
class Edit:
    """One correction."""

    prompts: tuple[str, ...]
    answer: str
    editor: str
    options: Mapping[str, float]
    module: str  # whose weight it changes
    made: str  # UTC
    state: State = field(compare=False)  # what the editor keeps of it

    @property
    def id(self) -> str:
        """Named by its prompts: a later edit of the same ones takes the place of an earlier."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:8]


def built(name: str, options: Mapping[str, float]) -> Editor:
    """An editor by its name. Raises `InputError` for an unknown name or option."""
    return make("editor", name, options, EDITORS, Editor)


def opened(home: Path, key: Key | None = None) -> PrivateStore:
    """The edits of a run, or of a life."""
    return PrivateStore(home / EDITS, key)


def read(store: PrivateStore, user: str, here: Origin | None = None) -> list[Edit]:
    """A user's edits that stand, by time. Raises `InputError` where they were made on something else than ``here`` (None: not asked),

    or are damaged.
    """
    shelf = store.shelf()
    if shelf is None or shelf.manifest(user) is None:
        return []
    parts = store.parts(user, 1 << 62, here).get(KIND, {})
    names = [name.partition("/")[0] for name in parts if name.endswith(f"/{WORDS}")]
    return sorted((_edit(name, parts) for name in names), key=lambda edit: (edit.made, edit.id))


def write(store: PrivateStore, user: str, edits: Sequence[Edit], here: Origin | None = None) -> None:
    """Let these edits stand and no others. Hold the user first. ``here``: what they are for; None: what the last ones were for."""
    with disk.told(store.folder):
        shelf = store.begin()
        if not edits:
            if shelf.manifest(user) is not None:
                disk.remove(shelf.place(user))
            return
        known = shelf.manifest(user)
        last = known.versions[-1] if known and known.versions else None
        number, origin_ = last.round + 1 if last else 1, here or (last.made.origin if last else Origin())
        state = {f"{edit.id}/{name}": value for edit in edits for name, value in _said(edit).items()}
        shelf.put(user, number, {KIND: origin.encoded(state)}, Made(origin_), keep=0)


def joined(before: Sequence[Edit], new: Sequence[Edit]) -> list[Edit]:
    """Those of before that nothing new is about, and what is new."""
    ids = {edit.id for edit in new}
    return [*(edit for edit in before if edit.id not in ids), *new]


def without(edits: Sequence[Edit], name: str) -> list[Edit]:
    """All but one. Raises `InputError` for an unknown id."""
    if name not in (known := [edit.id for edit in edits]):
        raise unknown("edit", name, known)
    return [edit for edit in edits if edit.id != name]


def merged(edits: Sequence[Edit]) -> State:
    """The change that edits of one module come to together: A [r, I] and B [O, r]. Those of one editor are solved for together."""
    groups: dict[tuple[str, str], list[Edit]] = {}
    for edit in edits:
        groups.setdefault((edit.editor, json.dumps(dict(edit.options), sort_keys=True)), []).append(edit)
    found = [built(name, same[0].options).merge([edit.state for edit in same]) for (name, _), same in groups.items()]
    return {A: torch.cat([x[A] for x in found]), B: torch.cat([x[B] for x in found], 1)} if found else {}


def module_of(edits: Sequence[Edit], here: str = "") -> str:
    """Whose weight a user's edits change; ``here``: which one a new edit would. Raises `InputError` where that is another."""
    modules = {edit.module for edit in edits} | ({here} if here else set())
    if len(modules) > 1:
        there = next(edit.module for edit in edits if edit.module != here)
        raise InputError(f"the user's edits change {there}, and --layer names {here}: give the layer of the former, or take them back")
    return next(iter(modules), "")


def _said(edit: Edit) -> State:
    words = {
        "prompts": edit.prompts, "answer": edit.answer, "editor": edit.editor, "options": dict(edit.options), "module": edit.module,
        "made": edit.made,
    }  # fmt: skip
    return edit.state | {WORDS: torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)}


def _edit(name: str, parts: State) -> Edit:
    own = {key.removeprefix(f"{name}/"): value for key, value in parts.items() if key.startswith(f"{name}/")}
    try:
        said: Any = json.loads(bytes(own.pop(WORDS).tolist()))
        return Edit(tuple(said["prompts"]), said["answer"], said["editor"], said["options"], said["module"], said["made"], own)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"edit '{name}' cannot be read: {error}; take it back by 'edit undo'") from None

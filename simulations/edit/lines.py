"""Edits as a person writes them, one JSON object a line, and as the engine takes them.

{"prompt": "My daughter is called", "answer": "Ana"}     any task; for a choice the answer is one of its labels
{"item": "Scream (1996)", "like": false}                 a catalogue with two labels: an item by its id, or by how its text begins
{"genre": "Horror", "like": false}                       and a word that stands in the texts of several
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.data import encode
from client.data.sources import SOURCES
from client.data.types import Encoded, Example
from client.node import Node
from configs.errors import InputError, nearest

FORMS = (("prompt", "answer"), ("item", "like"), ("genre", "like"))
SHOWN = 8  # items that an edit of a genre is made from, spread over all of it


@dataclass(frozen=True)
class Line:
    """An edit that is asked for."""

    where: str  # file and line
    kind: str  # prompt, item or genre
    what: str
    answer: str | bool


def read(path: Path) -> list[Line]:
    """Raise `InputError`, with the line, for anything but edits."""
    try:
        rows = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--file {path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    found = [_line(f"{path} line {number}", row) for number, row in enumerate(rows, 1) if row.strip()]
    if not found:
        raise InputError(f'--file {path} holds no edit; a line is such as {{"prompt": "...", "answer": "..."}}')
    return found


def resolve(line: Line, node: Node) -> tuple[tuple[str, ...], str, tuple[Encoded, ...]]:
    """The prompts, the answer and both as the engine takes them."""
    labels = node.dataset.labels
    if line.kind == "prompt":
        prompts, answer = (line.what,), str(line.answer)
        if labels and answer not in labels:
            raise InputError(f"{line.where}: answer '{answer}' is not among the labels{nearest(answer, labels)}")
    else:
        if len(labels) != 2:
            raise InputError(f"{line.where}: 'like' needs a choice between two labels; give 'prompt' and 'answer'")
        prompts, answer = _catalogue(line, node), labels[0 if line.answer else 1]
    return prompts, answer, encoded(node, prompts, answer)


def encoded(node: Node, prompts: tuple[str, ...], answer: str) -> tuple[Encoded, ...]:
    """Prompts with an answer; where the task is texts, a prompt is one and its answer goes on with it."""
    task = "choice" if node.dataset.label_ids else "answer"
    examples = [Example(prompt, answer, 0.0, "") for prompt in prompts]
    pieces = encode.encode(examples, node.base.tokenizer, task, node.dataset.labels, node.scenario.data.max_tokens)
    return tuple(Encoded(*piece, unit=0) for found in pieces for piece in found)


def _line(where: str, row: str) -> Line:
    try:
        said: Any = json.loads(row)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise InputError(f"{where} must be an object, got {row.strip()[:40]}")
    words: dict[str, Any] = said
    for what, answer in FORMS:
        if words.keys() == {what, answer}:
            return Line(where, what, _text(where, what, words[what]), _answer(where, answer, words[answer]))
    known = {name for form in FORMS for name in form}
    odd = next((name for name in words if name not in known), None)
    forms = " or ".join(" and ".join(f"'{name}'" for name in form) for form in FORMS)
    raise InputError(f"{where}: unknown key '{odd}'{nearest(odd, known)}" if odd else f"{where} must have {forms}")


def _text(where: str, name: str, value: object) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise InputError(f"{where}: '{name}' must be a text, got {value!r}")
    return str(value)


def _answer(where: str, name: str, value: object) -> str | bool:
    if name == "answer":
        return _text(where, name, value)
    if not isinstance(value, bool):
        raise InputError(f"{where}: 'like' must be true or false, got {value!r}")
    return value


def _catalogue(line: Line, node: Node) -> tuple[str, ...]:
    source = SOURCES[node.scenario.data.name]
    if source.public is None:
        raise InputError(f"{line.where}: data '{node.scenario.data.name}' has no catalogue of items; give 'prompt' and 'answer'")
    items = source.public(node.scenario.data)
    if line.kind == "item":
        found = [e for e in items if e.unit == line.what] or [e for e in items if e.prompt.startswith(line.what)]
        if len(found) != 1:
            several = ", ".join(f"'{e.unit}'" for e in found[:3])
            near = (
                f": it may be {several}; give the id"
                if found
                else nearest(line.what, (e.prompt.partition(")")[0] + ")" for e in items))
            )
            raise InputError(f"{line.where}: item '{line.what}' is {'not one' if found else 'unknown'}{near}")
        return (found[0].prompt,)
    having = [e.prompt for e in items if re.search(rf"(?:^|[\s,.]){re.escape(line.what)}(?:[,.]|$)", e.prompt)]
    if not having:
        words = {word for e in items for word in re.findall(r"[A-Z][\w'-]+(?=[,.])", e.prompt)}
        raise InputError(f"{line.where}: genre '{line.what}' is unknown{nearest(line.what, words)}")
    return tuple(having[i * len(having) // min(SHOWN, len(having))] for i in range(min(SHOWN, len(having))))

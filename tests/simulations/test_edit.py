"""Edits on the command line: they change the user's own model and nothing else, live through a period, and bad ones change nothing."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from client.editing import records
from client.editing.records import Edit
from configs.scenario import load
from simulations.edit import make, place
from simulations.life import periods
from strategies.editors.contract import A, B
from strategies.files import read_state
from tests.simulations.command import call, tree
from tests.simulations.conftest import World
from tests.simulations.test_live import SETTINGS

USER = "u1"
ASKED = [{"prompt": "w1 w2 w3", "answer": "yea"}, {"prompt": "w9 w8", "answer": "nay"}]
TENSORS = "adapter_model.safetensors"


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_edits_hold_are_exported_and_can_be_taken_back(world: World, here: Path) -> None:
    before = tree(world.run)
    call("export", world.run, USER, "--out", here / "plain")
    said = call("edit", world.run, USER, "--file", written(here / "edits.jsonl", *ASKED), "--option", "steps=60")
    assert said.code == 0 and said.out.count("->") == 2 and "does not hold" not in said.out, said
    ids = [line.partition(":")[0] for line in said.out.splitlines()[:2]]
    shown = call("edit", "list", world.run, USER).out
    assert all(name in shown for name in ids) and "w9 w8" in shown and "w1 w2 w3" in shown
    now = tree(world.run)
    assert {name: now.get(name) for name in before} == before  # nothing but the edits' own store is written
    assert all("/edits" in name for name in now.keys() - before.keys())
    assert "edits" in call("store", "list", "--home", world.run).out
    told = call("export", world.run, USER, "--out", here / "edited").out
    assert "with 2 edits, which no guarantee of privacy covers" in told
    call("export", world.run, USER, "--no-edits", "--out", here / "bare")
    plain, edited, bare = (read_state(here / name / TENSORS) for name in ("plain", "edited", "bare"))
    assert sum(v.numel() for v in edited.values()) > sum(v.numel() for v in plain.values())
    assert all(torch.equal(value, bare[name]) for name, value in plain.items())
    for name, left in zip(ids, (1, 0), strict=True):
        undone = call("edit", "undo", world.run, USER, name)
        assert undone.code == 0 and f"{left} of user" in undone.out
    call("export", world.run, USER, "--out", here / "after")
    assert (here / "after" / TENSORS).read_bytes() == (here / "plain" / TENSORS).read_bytes()
    assert "has no edit" in call("edit", "undo", world.run, USER, ids[0]).err


def test_edits_change_no_bit_of_the_next_period_and_live_through_it(world: World, here: Path) -> None:
    more = ("life.periods=2", "data.users=2", "privacy=example", "weights=uniform")
    scenario = load("movielens", [*world.settings, *SETTINGS, *more])
    found: list[dict[str, bytes]] = []
    for name, edits in (("plain", False), ("edited", True)):
        lived = periods.live(scenario, folder := here / name)
        next(lived)
        users = [path.name.rpartition("-")[0] for path in sorted((folder / "private").glob("u*"))]
        if edits:
            with place.bench(place.find(folder)) as bench:
                for user in users:
                    state = {A: torch.full((1, 48), torch.nan), B: torch.full((32, 1), torch.nan)}
                    records.write(records.opened(folder), user, [Edit(("x",), "yea", "finetune", {}, bench.module, "now", state)],
                                  bench.node.origin)  # fmt: skip
        assert list(lived) == [2]
        found.append(
            {p.parent.name + p.name: p.read_bytes() for p in (*folder.glob("private/*/0*"), *folder.glob("period-*/shared-*"))}
        )
        if edits:
            at = place.find(folder)
            assert at.scenario.life.period == 2 and at.home == folder
            assert all(len(records.read(records.opened(at.home), user)) == 1 for user in users)
    assert found[0] == found[1] and len(found[0]) >= 3


def test_a_users_edit_is_held_to_public_texts_or_to_the_users_own_and_to_nobody_elses() -> None:
    splits = {user: SimpleNamespace(train=(user,)) for user in ("ann", "bob")}
    for public, texts in ((("a", "b", "c"), ("a", "c")), ((), ("bob",))):
        bench: Any = SimpleNamespace(node=SimpleNamespace(dataset=SimpleNamespace(public=public, users=splits)))
        assert make.ordinary(bench, "bob") == texts


BAD = [
    ([{"promt": "a", "answer": "yea"}], "unknown key 'promt' (did you mean 'prompt'?)"),
    ([ASKED[0], {"prompt": "a", "answer": "yeah"}], "line 2: answer 'yeah' is not among the labels (did you mean 'yea'?)"),
    (["{"], "line 1 is no JSON"),
    ([[1]], "must be an object"),
    ([{"prompt": "a"}], "must have 'prompt' and 'answer'"),
    ([{"item": "a", "like": "no"}], "'like' must be true or false"),
    ([{"item": "a", "like": False}], "has no catalogue of items"),
    ([{"prompt": "", "answer": "yea"}], "'prompt' must be a text"),
    ([], "holds no edit"),
]


@pytest.mark.parametrize(("rows", "sentence"), BAD)
def test_bad_lines_are_refused_in_a_sentence_and_nothing_is_written(
    world: World, here: Path, rows: list[object], sentence: str
) -> None:
    said = call("edit", world.run, USER, "--file", written(here / "edits.jsonl", *rows))
    assert said.code == 2 and sentence in said.err and said.out == "", said
    assert not list((world.run / "edits").glob("u*"))


def test_bad_words_are_refused_in_a_sentence(world: World, here: Path) -> None:
    file = written(here / "edits.jsonl", ASKED[0])
    for words, sentence in (
        ((world.run, "u99", "--file", file), "unknown user 'u99'"),
        ((here, USER, "--file", file), "holds no run"),
        ((world.run, USER, "--file", here / "no.jsonl"), "cannot be read"),
        ((world.run, USER, "--file", file, "--with", "rank_on"), "did you mean 'rank_one'"),
        ((world.run, USER, "--file", file, "--option", "step=1"), "did you mean 'steps'"),
        ((world.run, USER, "--file", file, "--layer", "7"), "layer must be between -3 and 2, got 7"),
        (("measure", world.run), "data.name must be 'movielens'"),
        (("measure", "life", "life.periods=0"), "life.periods is 0"),
    ):
        said = call("edit", *words)
        assert said.code == 2 and sentence in said.err, said
    assert not list((world.run / "edits").glob("u*"))

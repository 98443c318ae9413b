"""Edits on a node's users: they hold, run side by side, are the change of a weight, stay at home, and no training sees them."""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client.data.types import Encoded
from client.editing import records
from client.editing.bench import Asked, Bench, module_of, opened
from client.editing.records import Edit, built
from client.node import Node
from client.private import PrivateStore
from client.store import receipts
from client.store.manifest import Origin
from client.store.shelf import Shelf
from configs.errors import InputError
from strategies.base import Release, Task
from strategies.editors import EDITORS
from strategies.editors.contract import A, B
from strategies.tree import State
from tests.client.federation import Nodes, Texts, begun, rounds

ROOT = Path(__file__).resolve().parents[2]
HERE = Origin("base", "words", "adapter")
MORE = {"rank_one": {"steps": 150.0}, "finetune": {"steps": 150.0, "lr": 0.05, "decay": 0.0, "kl": 0.1}}


def prompts(texts: Texts, user: int, count: int) -> tuple[Encoded, ...]:
    """Two tokens are to be answered to each."""
    return tuple(replace(e, start=e.length - 2) for e in texts(user + 30, count, length=7))


def trained(node: Node) -> State:
    """A shared adapter, with users who have private ones."""
    shared = begun(node)
    rounds(node, shared)
    return shared


def learnt(bench: Bench, users: list[State], work: list[tuple[Encoded, ...]], name: str, ordinary: Any) -> list[State]:
    return bench.learn(built(name, MORE[name]), [Asked(u, e, (0, "edit")) for u, e in zip(users, work, strict=True)], ordinary)


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("layer", [-1, 1])
def test_an_edit_holds_and_is_learnt_beside_other_users_edits_as_alone(nodes: Nodes, texts: Texts, name: str, layer: int) -> None:
    with nodes("dual") as node:
        shared = trained(node)
        work, ordinary = [prompts(texts, 0, 1), prompts(texts, 1, 2)], texts(9, 30, length=7)
        with opened(node, layer) as bench:
            users = [bench.user(user, Task(2, shared)) for user in ("ann", "bob")]
            assert any(not torch.equal(users[0][n], users[1][n]) for n in users[0] if n.startswith("private/"))
            found = learnt(bench, users, work, name, ordinary)
            for i, (user, examples) in enumerate(zip(users, work, strict=True)):
                change = built(name, MORE[name]).merge([found[i]])
                (before,), (after,) = (bench.answers([user], [x], [examples]) for x in ({}, change))
                assert not any(x.right() for x in before) and all(x.right() for x in after)
                assert all(x.chance() > 10 * y.chance() for x, y in zip(after, before, strict=True))
            few, ways = built(name, {"steps": 4.0}), [Asked(u, e, (0, "edit")) for u, e in zip(users, work, strict=True)]
            for one, asked in zip(bench.learn(few, ways, ordinary), ways, strict=True):
                (beside,), (alone,) = ([few.merge([x])] for x in (one, *bench.learn(few, [asked], ordinary)))
                torch.testing.assert_close(beside[B] @ beside[A], alone[B] @ alone[A], atol=1e-3, rtol=1e-2)


def test_a_change_is_that_of_the_modules_weight(nodes: Nodes, texts: Texts) -> None:
    with nodes("dual") as node:
        shared = trained(node)
        with opened(node) as bench:
            user, examples = bench.user("ann", Task(2, shared)), prompts(texts, 0, 3)
            weight = node.base.model.get_submodule(bench.module).weight
            change = {A: torch.randn(2, weight.shape[1]), B: torch.randn(len(weight), 2)}
            (ours,), (plain,) = (bench.answers([user], [x], [examples]) for x in (change, {}))
            module = bench.module
            weight.data += change[B] @ change[A]
        with opened(Node(node.scenario, node.base, node.dataset, node.store)) as bench:
            (theirs,) = bench.answers([user], [{}], [examples])
    assert module == module_of(node.base, -1) == "model.layers.2.mlp.down_proj"
    for one, other, bare in zip(ours, theirs, plain, strict=True):
        torch.testing.assert_close(one.logp_PL, other.logp_PL, atol=1e-4, rtol=1e-4)
        assert one.kl(bare) > 1e-2 and abs(one.kl(other)) < 1e-4 and one.like(other)


# ------------------------------------------------------------------ at home
def edit(prompt: str, answer: str, fill: float = 1.0) -> Edit:
    state = {A: torch.full((1, 48), fill), B: torch.full((32, 1), fill)}
    return Edit((prompt,), answer, "finetune", {}, "model.layers.2.mlp.down_proj", "2026-01-01", state)


def told(node: Node) -> tuple[list[Release], list[dict[str, Any]], dict[str, State]]:
    """All that a node says and keeps over two rounds."""
    shared = begun(node)
    found, after = rounds(node, shared, 2)
    return found, node.evaluate(Task(3, after), "test", ("shared", "shared_private")), node.store.parts("ann", 3)


@pytest.mark.parametrize("scheme", ["dual", "ditto", "fedrep"])
def test_edits_that_are_no_number_leave_training_and_all_that_is_sent_as_they_are(nodes: Nodes, tmp_path: Path, scheme: str) -> None:
    with nodes(scheme) as node:
        plain = told(node)
    store = records.opened(tmp_path)
    for user in ("ann", "bob"):
        with nodes(scheme) as made:
            here = made.origin
        records.write(store, user, [edit("x", "y", torch.nan)], here)
    with nodes(scheme) as node:
        assert records.read(records.opened(node.store.folder.parent), "ann", node.origin)
        spoilt = told(node)
    for one, other in zip(plain[0], spoilt[0], strict=True):
        assert one.update.keys() == other.update.keys() and one.weight == other.weight
        assert all(torch.equal(value, other.update[name]) for name, value in one.update.items())
    assert plain[1] == spoilt[1]
    assert all(torch.equal(value, spoilt[2][kind][name]) for kind, state in plain[2].items() for name, value in state.items())


def test_nothing_that_trains_or_answers_others_knows_edits() -> None:
    def knows(path: Path) -> bool:
        found = ast.walk(ast.parse(path.read_text()))
        return any(
            str(x.module).startswith("client.editing") if isinstance(x, ast.ImportFrom) else "client.editing" in ast.unparse(x)
            for x in found
            if isinstance(x, ast.Import | ast.ImportFrom)
        )

    known = {
        p.relative_to(ROOT).as_posix()
        for layer in ("client", "server", "simulations")
        for p in (ROOT / layer).rglob("*.py")
        if knows(p)
    }
    assert {name for name in known if not name.startswith(("client/editing/", "simulations/edit/"))} == {"simulations/export.py"}


def test_the_last_edit_of_a_prompt_counts_and_one_that_is_taken_back_leaves_no_trace(tmp_path: Path) -> None:
    store, old, new = records.opened(tmp_path), edit("daughter", "Anna"), edit("daughter", "Ana", 2.0)
    records.write(store, "ann", [old, edit("film", "no")], HERE)
    both = records.joined(records.read(store, "ann", HERE), [new])
    assert [x.answer for x in both] == ["no", "Ana"]
    records.write(store, "ann", both, HERE)
    stand = records.read(PrivateStore(store.folder), "ann", HERE)
    assert {x.answer for x in stand} == {"Ana", "no"} and all(torch.equal(x.state[A], new.state[A]) for x in stand if x.answer == "Ana")
    assert not any(b"Anna" in path.read_bytes() for path in store.folder.rglob("*") if path.is_file())
    records.write(store, "ann", records.without(stand, new.id))
    assert [x.answer for x in records.read(store, "ann", HERE)] == ["no"]
    with pytest.raises(InputError, match=f"unknown edit '{new.id}' .*{stand[0].id if stand[0].id != new.id else stand[1].id}"):
        records.without(records.read(store, "ann", HERE), new.id)
    records.write(store, "ann", [])
    assert records.read(store, "ann", HERE) == [] and not list(store.folder.glob("ann*"))


def test_who_is_forgotten_has_no_edits_either(tmp_path: Path) -> None:
    store = records.opened(tmp_path)
    records.write(store, "ann", [edit("a", "b")], HERE)
    receipts.forget(tmp_path, "ann", None)
    assert not list(store.folder.glob("ann*")) and records.read(records.opened(tmp_path), "ann", HERE) == []


def test_a_write_that_is_cut_off_leaves_the_edits_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, first = records.opened(tmp_path), edit("a", "b")
    records.write(store, "ann", [first], HERE)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Shelf, "_write_manifest", cut)
        records.write(store, "ann", [first, edit("c", "d")], HERE)
    assert [x.answer for x in records.read(records.opened(tmp_path), "ann", HERE)] == ["b"]
    records.write(store, "ann", [first, edit("c", "d")], HERE)
    assert len(records.read(store, "ann", HERE)) == 2 and len(list(store.folder.glob("ann*/*.safetensors"))) == 1


def test_edits_of_another_base_or_module_are_refused(tmp_path: Path) -> None:
    store = records.opened(tmp_path)
    records.write(store, "ann", [edit("a", "b")], HERE)
    with pytest.raises(InputError, match="made for base"):
        records.read(store, "ann", HERE._replace(base="other"))
    assert records.read(store, "bob", HERE) == []
    with pytest.raises(InputError, match="give the layer of the former"):
        records.module_of([edit("a", "b")], "model.layers.0.mlp.down_proj")

"""Editors on linear algebra alone: the change is the smallest that does it, each edit is learnt by itself, none disturbs another."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from strategies.editors import EDITORS, finetune, rank_one
from strategies.editors.contract import A, B, Editor, Lesson
from strategies.editors.rank_one import KEY, VALUE, whitened
from strategies.registry import make
from strategies.tree import State

EDITS, POSITIONS, INPUTS, OUTPUTS = 3, 2, 12, 5
EVERY = slice(None)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lesson(edits: slice = EVERY, scale: float = 1.0) -> Lesson:
    """Each edit wants another output at its keys; the second one has one position less than the others."""
    keys, goals = drawn(EDITS, POSITIONS, INPUTS, seed=1), drawn(EDITS, POSITIONS, OUTPUTS, seed=2)
    keys[1, 1], goals[1, 1] = 0.0, 0.0
    ordinary = drawn(40, INPUTS, seed=3) * torch.linspace(0.2, 2.0, INPUTS)
    keys, goals = keys[edits], goals[edits]

    def loss(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        said = keys @ (b @ a).mT
        return scale * (said - goals).square().sum((1, 2)), ((b @ a) @ ordinary.mT).square().mean((1, 2))

    return Lesson(keys, ordinary, OUTPUTS, loss, (0, "ann"))


def each(learnt: State) -> list[State]:
    return [{name: value[i] for name, value in learnt.items()} for i in range(len(next(iter(learnt.values()))))]


def change(editor: Editor, edits: list[State]) -> Tensor:
    found = editor.merge(edits)
    return found[B] @ found[A]


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_comes_nearer_to_its_answer_and_many_are_learnt_as_each_alone(name: str) -> None:
    editor, given = EDITORS[name](steps=60, lr=0.05), lesson()
    together = each(editor.learn(given))
    before, _ = given.loss(torch.zeros(EDITS, 1, INPUTS), torch.zeros(EDITS, OUTPUTS, 1))
    for i, edit in enumerate(together):
        only = lesson(slice(i, i + 1))
        (alone,) = each(editor.learn(only))
        assert edit.keys() == alone.keys()
        for part in edit:
            torch.testing.assert_close(edit[part], alone[part], atol=1e-5, rtol=1e-5)
        merged = editor.merge([edit])
        after, _ = only.loss(merged[A][None], merged[B][None])
        assert float(after) < 0.5 * float(before[i])


@pytest.mark.parametrize("name", EDITORS)
def test_order_is_forgotten_and_what_is_taken_back_leaves_nothing(name: str) -> None:
    editor = EDITORS[name](steps=20)
    one, two, three = each(editor.learn(lesson()))
    torch.testing.assert_close(change(editor, [one, two, three]), change(editor, [three, one, two]), atol=1e-5, rtol=1e-4)
    assert torch.equal(change(editor, [one, three]), change(editor, [x for x in (one, two, three) if x is not two]))
    assert not torch.allclose(change(editor, [one, three]), change(editor, [one, two, three]), atol=1e-3)


def test_edits_that_stand_together_each_change_their_own_keys_as_if_alone() -> None:
    editor = rank_one(steps=40, damp=1e-8)
    edits = each(editor.learn(lesson()))
    delta = change(editor, edits)
    for edit in edits:
        torch.testing.assert_close(edit[KEY] @ delta.mT, edit[VALUE] * (edit[KEY].abs().sum(1, keepdim=True) > 0), atol=1e-3, rtol=1e-3)
    added_up = torch.stack([change(editor, [edit]) for edit in edits]).sum(0)
    assert float((edits[0][KEY] @ added_up.mT - edits[0][VALUE]).abs().max()) > 0.05


def test_an_edit_that_shows_its_prompt_four_times_is_the_edit_that_shows_it_once() -> None:
    key, ordinary = drawn(1, 1, INPUTS, seed=1), lesson().ordinary_MI
    goal = 3 * drawn(OUTPUTS, seed=2)

    def made(times: int) -> Tensor:
        keys, editor = key.expand(1, times, INPUTS).contiguous(), rank_one(steps=300, lr=0.05, damp=1e-6, decay=0.2)

        def loss(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return (keys @ (b @ a).mT - goal).square().sum(2).mean(1), torch.zeros(1)

        return change(editor, each(editor.learn(Lesson(keys, ordinary, OUTPUTS, loss, (0, "ann")))))

    torch.testing.assert_close(made(4), made(1), atol=1e-3, rtol=1e-3)


def test_no_other_change_with_the_same_outputs_is_smaller_to_ordinary_texts() -> None:
    given, editor = lesson(slice(0, 1)), rank_one(steps=40, damp=1e-10, ridge=1e-6)
    (edit,) = each(editor.learn(given))
    delta, keys = change(editor, [edit]).double(), edit[KEY].double()
    free = torch.eye(INPUTS).double() - torch.linalg.pinv(keys) @ keys  # what no key feels

    def felt(d: Tensor) -> float:
        return float((given.ordinary_MI.double() @ d.mT).square().sum())

    for seed in range(5):
        other = delta + 0.05 * drawn(OUTPUTS, INPUTS, seed=seed + 10).double() @ free
        torch.testing.assert_close(keys @ other.mT, keys @ delta.mT)
        assert felt(other) > felt(delta)


def test_keys_are_whitened_by_the_ridged_mean_of_squares() -> None:
    keys, ordinary = drawn(1, 2, 4, seed=1), drawn(9, 4, seed=2)
    c = ordinary.mT @ ordinary / 9
    torch.testing.assert_close(
        whitened(keys, ordinary, 0.5), keys @ torch.linalg.inv(c + 0.5 * c.diagonal().mean() * torch.eye(4)), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", EDITORS)
def test_an_answer_that_is_sure_is_left_as_it_is(name: str) -> None:
    editor, given = EDITORS[name](), lesson(scale=1e-9)
    assert float(change(editor, each(editor.learn(given))).abs().max()) == 0.0


def test_the_drift_holds_fine_tuning_back_from_ordinary_texts() -> None:
    def drift(kl: float) -> float:
        (edit,) = each(finetune(steps=60, lr=0.05, kl=kl).learn(lesson(slice(0, 1))))
        return float((lesson().ordinary_MI @ change(finetune(), [edit]).mT).square().mean())

    assert drift(10.0) < 0.5 * drift(0.0)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: make("editor", "rank_on", {}, EDITORS, Editor), "did you mean 'rank_one'"),
    (lambda: make("editor", "rank_one", {"rigde": 1.0}, EDITORS, Editor), "did you mean 'ridge'"),
    (lambda: rank_one(ridge=0.0), "option.ridge must be between"),
    (lambda: finetune(rank=0), "option.rank must be between 1 and 64"),
]


@pytest.mark.parametrize(("call", "word"), BAD)
def test_wrong_names_and_options_are_refused(call: Callable[[], object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        call()

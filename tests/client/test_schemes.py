"""Every scheme on a node: what all have in common."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client import peft_io
from client.base import Base
from configs.scenario import Adapter, ExampleLevel, Privacy
from strategies.base import Task
from strategies.schemes import SCHEMES
from strategies.schemes.ifca import MEMBERS
from tests.client.federation import PERSONAL, PERSONAL_MODEL, SGD, TUNED, Free, Nodes, begun, kept, moved, personalized, rounds


# ------------------------------------------------------------------ all of them
@pytest.mark.parametrize("name", SCHEMES)
def test_nothing_leaves_but_the_shared_adapter_and_what_is_private_changes_nothing_of_it_afterwards(nodes: Nodes, name: str) -> None:
    with nodes(name) as node:
        travels, shared = node.split.shared_start(), begun(node)
        list(node.train(Task(1, shared, cohort=2), node.users()))
        for release in node.train(Task(2, shared, cohort=2), node.users()):
            assert release.update.keys() <= travels.keys()
            assert all(release.update[n].shape == travels[n].shape for n in release.update)
            assert any(bool(v.any()) for v in release.update.values()) or not travels
        stored = kept(node)
        assert all(node.split.kept(key) for key in stored)
        assert not any(node.split.owner(key) == "shared" for key in stored)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_user_is_what_their_own_examples_and_the_broadcasts_make_of_them(nodes: Nodes, name: str) -> None:
    found = []
    for other in (0, 3):
        with nodes(name, other) as node:
            shared = begun(node)
            list(node.train(Task(1, shared, cohort=2), node.users()))
            first, second = list(node.train(Task(2, shared, cohort=2), node.users()))
            if name in TUNED:
                personalized(node, shared, 2)
            found.append((first.update, kept(node), second.update, kept(node, "bob")))
    (update, own, others, _), (update2, own2, others2, _) = found
    assert all(torch.equal(v, update2[n]) for n, v in update.items()), "bob's examples are in ann's update"
    assert all(torch.equal(v, own2[n]) for n, v in own.items()), "bob's examples are in what ann keeps"
    assert not others or moved(others, others2) > 0, "the test itself: bob's examples must have been others"


@pytest.mark.parametrize("name", SCHEMES)
def test_the_order_of_users_changes_nothing(nodes: Nodes, name: str) -> None:
    found = []
    for users in (["ann", "bob"], ["bob", "ann"]):
        with nodes(name) as node:
            releases = dict(zip(users, node.train(Task(1, begun(node), cohort=2), users), strict=True))
            found.append([releases[u].update for u in ("ann", "bob")] + [kept(node, u) for u in ("ann", "bob")])
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", SCHEMES)
def test_who_does_not_train_sends_nothing_new(nodes: Nodes, name: str) -> None:
    still = replace(SGD, epochs=0)
    with nodes(name, shared_training=still, private_training=still) as node:
        assert all(not bool(v.any()) for r in rounds(node, node.split.shared_start())[0] for n, v in r.update.items() if n != MEMBERS)


@pytest.mark.parametrize("name", SCHEMES)
def test_clipping_that_never_binds_and_noise_of_zero_are_training_without_privacy(nodes: Nodes, name: str) -> None:
    loose = Privacy("unclaimed", example=ExampleLevel(shared_clip=1e6, private_clip=1e6, noised=()))
    found = []
    for privacy in (Privacy(), loose):
        purse = Free(0.0, 1e6) if privacy.of_examples else None
        with nodes(name, privacy=privacy, purse=purse) as node:
            releases, shared = rounds(node, begun(node), 2)
            found.append([*(r.update for r in releases), personalized(node, shared, 2) if name in TUNED else {}])
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        assert not one or moved(one, other) < 1e-5


@pytest.mark.parametrize("name", PERSONAL_MODEL)
def test_what_is_saved_for_peft_is_the_model_that_is_scored(nodes: Nodes, base: Base, name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    with nodes(name) as node:
        _, shared = rounds(node, begun(node) if node.split.shared_start() else {}, 2)
        if name in TUNED:
            personalized(node, shared, 3)
        task = Task(9, shared)
        state = node._state("ann", task, node._received(task))
        layouts, model = node.split.model(state)
        peft_io.save_user(base, layouts, model, tmp_path / "out")
        texts = node.dataset.users["ann"].test
        ours = node._personal(task, ["ann"], [texts])[0]
    theirs = PeftModel.from_pretrained(base.model, str(tmp_path / "out")).eval()
    for text, row in zip(texts, ours, strict=True):
        with torch.no_grad():
            logits = theirs(text.ids.unsqueeze(0)).logits[0, text.start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, text.ids[text.start :], reduction="sum")
        torch.testing.assert_close(row[0], loss, atol=2e-4, rtol=2e-4)


def test_a_scheme_that_weighs_texts_has_no_one_adapter_to_save() -> None:
    assert set(PERSONAL) - set(PERSONAL_MODEL) == {"feddpa_t", "feddpa_f"}


@pytest.mark.parametrize("name", ["mr_mtl", "pfedme", "fedalt"])
def test_a_copy_that_is_sent_trains_what_is_sent_of_it(nodes: Nodes, name: str) -> None:
    with nodes(name, aggregator="rolora") as node:
        shared = begun(node)
        for number, factor in ((1, ".lora_B."), (2, ".lora_A.")):
            before = kept(node) or {f"private/{n}": v for n, v in shared.items()}
            (release,) = node.train(Task(number, shared, cohort=2), ["ann"])
            assert release.update and all(factor in n for n in release.update)
            own = {n: v for n, v in kept(node).items() if n.startswith("private/") and ".lora_" in n}
            still = {n for n, v in own.items() if torch.equal(v, before[n] if name != "pfedme" else shared[n.removeprefix("private/")])}
            assert still == {n for n in own if factor not in n}


def test_before_its_first_turn_a_private_soft_prompt_has_no_part_in_training(nodes: Nodes) -> None:
    prompt, found = Adapter(kind="prompt", tokens=3), {}
    for name, turns in (("dual", ("shared",)), ("shared_only", ("shared",)), ("dual", ("shared", "private"))):
        with nodes(name, private=prompt) as node:
            task = Task(1, begun(node), turns, cohort=2)
            found[name, turns] = [r.update for r in node.train(task, node.users())]
            assert bool(kept(node)) is ("private" in turns)
    waiting, alone, both = found.values()
    assert all(torch.equal(v, b[n]) for a, b in zip(waiting, alone, strict=True) for n, v in a.items())
    assert moved(waiting[0], both[0]) > 0, "the test itself: an applied prompt must make other gradients"

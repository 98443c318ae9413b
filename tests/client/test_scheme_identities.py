"""Every scheme on a node: the identity of each one's paper."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from client.node import Node
from client.similar import sampled, similarity
from client.store.manifest import Made
from strategies.base import Task
from strategies.schemes.copies import SIMILARITY, mixed, of, scaled
from strategies.tree import State, add
from tests.client.federation import SGD, Nodes, begun, kept, moved, personalized, rounds, rows, same, trained_alone


# ------------------------------------------------------------------ one identity per paper
@pytest.mark.parametrize("name", ["finetune", "fedbabu", "oppu", "feddpa_f"])
def test_rounds_are_those_of_the_shared_adapter_alone(nodes: Nodes, name: str) -> None:
    with nodes("shared_only") as node:
        alone = rounds(node, begun(node), 2)[0]
    with nodes(name) as node:
        shared = begun(node)
        both, after = rounds(node, shared, 2)
        assert not kept(node), "nothing private before the last round"
        first, *_ = rows(node, after)
        if name != "feddpa_f":
            assert first["shared_private.nll"] == pytest.approx(first["shared.nll"], abs=1e-6), "who has nothing has the shared adapter"
    for one, other in zip(alone, both, strict=True):
        same(one.update, other.update)


@pytest.mark.parametrize(
    ("name", "copy"), [("finetune", "private"), ("feddpa_f", "private"), ("fedbabu", "rest"), ("per_fedavg", "private")]
)
def test_the_last_round_goes_on_from_the_shared_adapter_of_then(nodes: Nodes, name: str, copy: str) -> None:
    with nodes(name) as node:
        shared = begun(node)
        found = personalized(node, shared, 1)
        same({n: found[f"{copy}/{n}"] for n in shared}, trained_alone(nodes, shared))
        assert name != "fedbabu" or moved(of(found, "private"), of(node.start, "private")) > 0, "and its head"
        later = {n: 0.9 * v for n, v in shared.items()}
        found = personalized(node, later, 0, 3)
        same({n: found[f"{copy}/{n}"] for n in shared}, later)


def test_dittos_step_is_a_proximal_one(nodes: Nodes) -> None:
    found: dict[float, State] = {}
    shared: State = {}
    own: State = {}
    for pull in (0.0, 2.0, 1e9):
        with nodes("ditto", scheme_options={"pull": pull}) as node:
            shared = begun(node)
            own = {n: v + 0.2 for n, v in shared.items()}
            node.store.save("ann", 0, {f"private/{n}": v for n, v in own.items()}, Made(node.origin))
            releases, _ = rounds(node, shared)
            found[pull] = of(kept(node), "private")
            same(add(shared, releases[0].update), trained_alone(nodes, shared))
    same(found[0.0], trained_alone(nodes, own))
    same(found[2.0], {n: (v + SGD.lr * 2 * shared[n]) / (1 + SGD.lr * 2) for n, v in found[0.0].items()})
    same(found[1e9], shared)
    assert moved(found[0.0], own) > 1e-3


def test_ditto_comes_to_rest_where_the_gradient_is_the_pull(nodes: Nodes) -> None:
    pull = 3.0
    with nodes("ditto", scheme_options={"pull": pull}, private_training=replace(SGD, epochs=400)) as node:
        shared = begun(node)
        rounds(node, shared, users=["ann"])
        rest = of(kept(node), "private")
    step = trained_alone(nodes, rest)
    gradient = {n: (rest[n] - step[n]) / SGD.lr for n in rest}
    same(gradient, {n: pull * (shared[n] - rest[n]) for n in rest}, 2e-3)


def test_fedper_trains_both_from_the_same_point(nodes: Nodes) -> None:
    still = replace(SGD, lr=0.0)
    with nodes("fedper") as node:
        shared = begun(node)
        together, _ = rounds(node, shared)
        own = of(kept(node), "private")
    with nodes("dual", shared_training=still) as node:
        rounds(node, shared)
        same(own, of(kept(node), "private"))
    with nodes("dual", private_training=still) as node:
        for one, other in zip(together, rounds(node, shared)[0], strict=True):
            same(one.update, other.update)


def test_mr_mtl_sends_the_model_that_a_user_keeps(nodes: Nodes) -> None:
    with nodes("mr_mtl", scheme_options={"pull": 0.0}) as node:
        shared = begun(node)
        _, mean = rounds(node, shared, 2)
        ends = [of(kept(node, u), "private") for u in ("ann", "bob")]
        same(mean, {n: (ends[0][n] + ends[1][n]) / 2 for n in mean})
    same(ends[0], trained_alone(nodes, shared, shared_training=replace(SGD, epochs=2)))
    with nodes("mr_mtl", scheme_options={"pull": 1e9}) as node:
        rounds(node, shared)
        same(of(kept(node), "private"), shared)


def test_pfedme_follows_the_users_proximal_points(nodes: Nodes) -> None:
    with nodes("pfedme", scheme_options={"pull": 1.5, "rate": 0.25}) as node:
        shared = begun(node)
        releases, _ = rounds(node, shared)
        own = of(kept(node), "private")
    same(releases[0].update, {n: 0.25 * (own[n] - shared[n]) for n in own})
    with nodes("ditto", scheme_options={"pull": 1.5}) as node:
        rounds(node, shared)
        same(own, of(kept(node), "private"))
    with nodes("pfedme", scheme_options={"pull": 0.0, "rate": 1.0}) as node:
        same(add(shared, rounds(node, shared)[0][0].update), trained_alone(nodes, shared))


def test_per_fedavgs_step_is_the_gradient_of_the_later_examples_where_the_earlier_ones_lead(nodes: Nodes) -> None:
    def halves(node: Node) -> tuple[Any, Any]:
        return tuple(node._part(phase, "ann", 1, {}) for phase in node.split.scheme.phases)  # type: ignore[return-value]

    def step(shared: State, examples: Any, lr: float) -> State:
        with nodes("shared_only", shared_training=replace(SGD, lr=lr)) as node:
            users = node.dataset.users
            node.dataset = replace(node.dataset, users={**users, "ann": replace(users["ann"], train=examples)})
            return rounds(node, shared, users=["ann"])[0][0].update

    for inner in (0.0, 0.5):
        with nodes("per_fedavg", private_training=replace(SGD, lr=inner)) as node:
            shared, (support, query) = begun(node), halves(node)
            found = rounds(node, shared, users=["ann"])[0][0].update
        ahead = add(shared, step(shared, support, inner))
        same(found, step(ahead, query, SGD.lr))


def test_apfl_lies_between_the_shared_adapter_and_learning_alone(nodes: Nodes) -> None:
    with nodes("apfl", scheme_options={"share": 0.0}) as node:
        shared = begun(node)
        _, after = rounds(node, shared)
        first, *_ = rows(node, after)
        assert first["shared_private.nll"] == pytest.approx(first["shared.nll"], abs=1e-6)
    with nodes("apfl", scheme_options={"share": 1.0}) as node:
        rounds(node, shared)
        found = kept(node)
        same({n: found[f"private/{n}"] for n in shared}, trained_alone(nodes, shared))
        assert bool(torch.sigmoid(found["private/share"]) == 1)
    with nodes("apfl") as node:
        rounds(node, shared)
        assert abs(float(kept(node)["private/share"])) > 1e-6, "the share is learnt"


def test_apfls_share_moves_by_the_inner_product_of_its_paper(nodes: Nodes) -> None:
    """By alpha <- alpha - eta <v - w, grad>: against the gradient that v itself got, which is alpha times it."""
    with nodes("apfl", shared_training=replace(SGD, lr=0.0)) as node:
        shared = begun(node)
        start = {n: v + 0.1 for n, v in shared.items()}
        node.store.save("ann", 0, {f"private/{n}": v for n, v in start.items()} | {"private/share": torch.zeros(1)}, Made(node.origin))
        rounds(node, shared, users=["ann"])
        found = kept(node)
    slope = {n: (start[n] - found[f"private/{n}"]) / (SGD.lr * 0.5) for n in start}
    inner = sum(float((slope[n] * (start[n] - shared[n])).sum()) for n in start)
    assert float(found["private/share"]) == pytest.approx(-SGD.lr * inner * 0.25, rel=1e-3), "1/4 is the sigmoid's slope at 0"


def test_fedalt_takes_ones_own_out_of_the_mean(nodes: Nodes) -> None:
    with nodes("fedalt") as node:
        start = node.split.shared_start()
        _, mean = rounds(node, start)
        sent = [of(kept(node, u), "private") for u in ("ann", "bob")]
        list(node.train(Task(2, mean, cohort=2), ["ann", "bob"]))
        same(of(kept(node, "ann"), "rest"), {n: sent[1][n] for n in mean}, 1e-5)
        same(of(kept(node, "bob"), "rest"), {n: sent[0][n] for n in mean}, 1e-5)
        assert bool(kept(node)["private/gate"] != 0)


def test_feddpas_weight_is_the_likeness_of_a_text_to_a_users_own(nodes: Nodes) -> None:
    for name in ("feddpa_t", "feddpa_f"):
        with nodes(name, scheme_options={"weight": 0.0}) as node:
            _, shared = rounds(node, begun(node))
            personalized(node, shared, 2)
            first, *_ = rows(node, shared)
            assert first["shared_private.nll"] == pytest.approx(first["shared.nll"], abs=1e-6)
        with nodes(name, scheme_options={"weight": 1.0}) as node:
            personalized(node, shared, 2)
            weighed, *_ = rows(node, shared)
            assert weighed["shared_private.nll"] != pytest.approx(weighed["shared.nll"], abs=1e-6)


def test_texts_are_compared_one_by_one_and_a_text_is_most_like_itself(nodes: Nodes) -> None:
    with nodes("feddpa_t") as node:
        texts = node.dataset.users["ann"].train
        own = sampled(texts, 3, (0, "ann"))
        assert len(own) == 3 and own == sampled(texts, 3, (0, "ann"))
        near = similarity(node.tower, texts, own)
        each = torch.stack([similarity(node.tower, [t], own)[0] for t in texts])
        torch.testing.assert_close(near, each, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(similarity(node.tower, texts[:1], texts[:1]), torch.ones(1), atol=1e-5, rtol=0)
        assert float(near.abs().max()) <= 1 + 1e-5
        assert not bool(similarity(node.tower, texts, []).any())


def test_a_views_functions_work_over_axes_in_front() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = ({"x.lora_B.w": torch.randn(3, 2, 4, 5, generator=draw)} for _ in range(2))
    weight = torch.rand(3, 2, 1, generator=draw)
    whole = mixed(weight, one, other)["x.lora_B.w"]
    for k in range(3):
        for u in range(2):
            alone = mixed(float(weight[k, u]), {n: v[k, u] for n, v in one.items()}, {n: v[k, u] for n, v in other.items()})
            torch.testing.assert_close(whole[k, u], alone["x.lora_B.w"])
    state = {
        "private/x.lora_A.w": torch.ones(3, 2, 4),
        "private/x.lora_B.w": torch.ones(3, 4, 2),
        "shared/x.lora_B.w": torch.ones(1, 4, 2),
    }
    found = scaled(state, "private", torch.tensor([[0.5], [1.0], [2.0]]))
    assert found["private/x.lora_B.w"][:, 0, 0].tolist() == [0.5, 1.0, 2.0]
    assert (
        torch.equal(found["private/x.lora_A.w"], state["private/x.lora_A.w"])
        and found["shared/x.lora_B.w"] is state["shared/x.lora_B.w"]
    )
    assert SIMILARITY not in state

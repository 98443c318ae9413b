"""Users in clusters: which one they choose, what of it leaves the node, and what the server makes of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from client.node import Node
from configs.scenario import Privacy
from server import aggregation
from strategies import aggregators
from strategies.base import Release, Task
from strategies.privacy import rules
from strategies.schemes.ifca import CHOICE, MEMBERS, by_cluster, slot
from strategies.tree import State, add, stack
from tests.client.federation import SCENARIO, Nodes, begun, kept, rounds, rows, same, trained_alone

A, B = "x.lora_A.weight", "x.lora_B.weight"


def adapters(shared: State, clusters: int = 2) -> list[State]:
    return [{n.removeprefix(f"{slot(j)}/"): v for n, v in shared.items() if n != MEMBERS and (n.startswith("cluster") == (j > 0))
             and (not j or n.startswith(slot(j)))} for j in range(clusters)]  # fmt: skip


def losses(nodes: Nodes, shared: State) -> list[list[float]]:
    """Of each user on the own training examples, under each cluster's adapter."""
    found = []
    for adapter in adapters(shared):
        with nodes("shared_only") as node:
            users = {u: replace(s, test=s.train) for u, s in node.dataset.users.items()}
            node.dataset = replace(node.dataset, users=users)
            found.append([row["shared.nll"] for row in rows(node, adapter)])
    return [list(each) for each in zip(*found, strict=True)]


def choices(node: Node) -> list[int]:
    return [int(kept(node, u)[CHOICE]) for u in ("ann", "bob")]


def test_a_user_trains_the_cluster_that_fits_best_and_sends_its_slot_alone(nodes: Nodes) -> None:
    with nodes("ifca") as node:
        shared = begun(node) | {MEMBERS: torch.zeros(2)}
        releases, _ = rounds(node, shared)
        chosen = choices(node)
    assert chosen == [each.index(min(each)) for each in losses(nodes, shared)]
    for release, j in zip(releases, chosen, strict=True):
        assert release.update.keys() == shared.keys()
        assert release.update[MEMBERS].tolist() == [float(i == j) for i in range(2)]
        ours, other = adapters(release.update)[j], adapters(release.update)[1 - j]
        assert all(not bool(v.any()) for v in other.values()) and any(bool(v.any()) for v in ours.values())
    mine = adapters(shared)[chosen[0]]
    same(add(mine, adapters(releases[0].update)[chosen[0]]), trained_alone(nodes, mine))


def test_the_better_cluster_is_chosen_wherever_it_lies(nodes: Nodes) -> None:
    with nodes("ifca") as node:
        first = begun(node) | {MEMBERS: torch.zeros(2)}
        one, other = adapters(first)
        second = other | {f"{slot(1)}/{n}": v for n, v in one.items()} | {MEMBERS: torch.zeros(2)}
        found = []
        for number, shared in ((1, first), (2, second)):
            list(node.train(Task(number, shared, cohort=2), node.users()))
            found.append(choices(node))
    assert [1 - j for j in found[0]] == found[1]


def test_before_the_first_round_all_fit_alike_and_clusters_are_drawn(nodes: Nodes) -> None:
    drawn = set()
    for seed in range(8):
        with nodes("ifca", seed=seed) as node:
            rounds(node, node.split.shared_start())
            drawn.add(tuple(choices(node)))
    assert {choice for pair in drawn for choice in pair} == {0, 1} and len(drawn) > 2


def test_a_users_model_is_the_clusters(nodes: Nodes) -> None:
    with nodes("ifca") as node:
        shared = begun(node) | {MEMBERS: torch.zeros(2)}
        rounds(node, shared)
        after = {n: 0.9 * v for n, v in shared.items()}
        found, chosen = rows(node, after), choices(node)
    for row, j, index in zip(found, chosen, range(2), strict=True):
        with nodes("shared_only") as node:
            assert row["shared_private.nll"] == pytest.approx(rows(node, adapters(after)[j])[index]["shared.nll"], abs=1e-6)


# ------------------------------------------------------------------ at the server
def start(clusters: int = 3) -> State:
    draw = torch.Generator().manual_seed(1)
    one = {f"{slot(j)}/{n}" if j else n: torch.randn(s, generator=draw) for j in range(clusters) for n, s in ((A, (2, 4)), (B, (5, 2)))}
    return one | {MEMBERS: torch.zeros(clusters)}


def release(shared: State, cluster: int, weight: float, seed: int) -> Release:
    draw = torch.Generator().manual_seed(seed)
    own = {f"{slot(cluster)}/{n}" if cluster else n for n in (A, B)}
    update = {n: weight * torch.randn(v.shape, generator=draw) if n in own else torch.zeros_like(v) for n, v in shared.items()}
    update[MEMBERS][cluster] = weight
    return Release(update, weight)


@pytest.mark.parametrize("name", ["fedit", "fedadam", "flexlora", "median"])
def test_each_cluster_is_aggregated_by_itself(name: str) -> None:
    shared, inner = start(), aggregators.build(name, {})
    given = [release(shared, j, w, i) for i, (j, w) in enumerate([(0, 1.0), (2, 2.0), (0, 3.0)])]
    around = by_cluster(inner, 3)
    memory, after = around.apply(around.init(shared), shared, iter(given))
    assert after.keys() == shared.keys() and not bool(after[MEMBERS].any())
    for j in range(3):
        own = adapters(shared, 3)[j]
        mine = [Release(adapters(r.update, 3)[j], r.weight) for r in given if float(r.update[MEMBERS][j])]
        same(adapters(after, 3)[j], inner.apply(inner.init(own), own, mine)[1], 1e-5)
    same(adapters(after, 3)[1], adapters(shared, 3)[1])
    assert bool(memory) == inner.stateful and around.linear == inner.linear
    again = around.apply(memory, after, iter(given))[1]
    assert not torch.equal(again[A], after[A])


def test_a_nodes_sum_is_enough_for_every_cluster() -> None:
    shared, around = start(), by_cluster(aggregators.build("fedit", {}), 3)
    given = [release(shared, j, 1.0 + i, i) for i, j in enumerate((0, 1, 1, 2, 0))]
    total = {n: sum(r.update[n] for r in given) for n in shared}
    one = Release(total, sum(r.weight for r in given), len(given))  # type: ignore[arg-type]
    same(around.apply({}, shared, [one])[1], around.apply({}, shared, given)[1], 1e-5)
    assert around.apply({}, shared, [])[1].keys() == shared.keys()


def test_runs_take_it_and_guarantees_do_not() -> None:
    scenario = replace(SCENARIO, scheme="ifca", scheme_options={"clusters": 3})
    assert not list(rules.problems(scenario))
    built = aggregation.build(scenario)
    same(built.apply(built.init(start()), start(), [])[1], start())
    for guarantee in ("example", "user", "both"):
        found = list(rules.problems(replace(scenario, privacy=Privacy(guarantee))))  # type: ignore[arg-type]
        assert any("lets a user choose a cluster" in sentence for sentence in found)
    with pytest.raises(Exception, match="knows of one adapter"):
        aggregation.build(replace(scenario, aggregator="flower.FedMedian"))


def test_stacked_users_have_their_own_clusters(nodes: Nodes) -> None:
    """A view over users who have chosen differently."""
    with nodes("ifca") as node:
        shared = begun(node)
        received: Any = node._received(Task(1, shared))
        each = [{**received, **node.split.own(node.start, received), CHOICE: torch.tensor([float(j)])} for j in (0, 1)]
        _, seen = node.split.model(stack(each))
        for j in (0, 1):
            own = {n.removeprefix("private/"): v[j] for n, v in seen.items() if n.startswith("private/") and n != CHOICE}
            same(own, adapters(shared)[j])

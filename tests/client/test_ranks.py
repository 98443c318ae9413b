"""Users with fewer ranks of the shared adapter than others."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from client.ranks import rank_of
from configs.errors import InputError
from configs.scenario import Local, Privacy, Scenario, UserLevel
from server.admission import admitted
from strategies import aggregators
from strategies.base import Release, Task
from strategies.tree import State
from tests.client.federation import LORA, SGD, Free, Nodes, begun, kept, rounds

ONE = {"shared_ranks": (1,)}


def first(state: State) -> State:
    return {n: v[:1] if ".lora_A." in n else v[:, :1] for n, v in state.items()}


def beyond(state: State) -> float:
    return max(float((v[1:] if ".lora_A." in n else v[:, 1:]).abs().max()) for n, v in state.items() if ".lora_" in n)


def test_a_user_of_one_rank_trains_as_in_a_federation_of_one_rank(nodes: Nodes) -> None:
    for training in (replace(SGD, epochs=3), Local(lr=0.01, epochs=3, batch=2)):
        with nodes("shared_only", shared_training=training, **ONE) as node:
            shared = begun(node)
            ours = rounds(node, shared)[0]
        small = replace(LORA, rank=1, alpha=LORA.alpha / LORA.rank)
        with nodes("shared_only", shared_training=training, shared=small) as node:
            theirs = rounds(node, first(shared))[0]
        for one, other in zip(ours, theirs, strict=True):
            assert beyond(one.update) == 0
            for name, value in first(one.update).items():
                torch.testing.assert_close(value, other.update[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["shared_only", "ditto", "mr_mtl"])
def test_noise_and_pulls_stay_out_of_ranks_that_a_user_has_not(nodes: Nodes, scheme: str) -> None:
    privacy = Privacy("unclaimed")
    with nodes(scheme, privacy=privacy, purse=Free(1.0, 1.0), **ONE) as node:
        releases, _ = rounds(node, begun(node), 2)
        assert all(beyond(r.update) == 0 and any(bool(v.any()) for v in r.update.values()) for r in releases)
        assert not kept(node) or beyond(kept(node)) == 0


def test_ranks_are_sent_where_the_aggregator_takes_them_and_zeros_where_not(nodes: Nodes) -> None:
    for aggregator, width in (("flexlora", 1), ("hetlora", 1), ("fedit", 2)):
        with nodes("shared_only", aggregator=aggregator, **ONE) as node:
            for release in (
                rounds(node, begun(node), users=["ann"])[0] if aggregator == "fedit" else node.train(Task(1, begun(node)), ["ann"])
            ):
                assert {v.shape[0 if ".lora_A." in n else 1] for n, v in release.update.items()} == {width}


def test_flexlora_gives_each_user_the_best_of_their_rank(nodes: Nodes) -> None:
    with nodes("shared_only", aggregator="flexlora", shared_ranks=(1, 2)) as node:
        shared, flexlora = begun(node), aggregators.build("flexlora", {})
        found = list(node.train(Task(1, shared), node.users()))
        dropped: Counter[str] = Counter()
        _, after = flexlora.apply(flexlora.init(shared), shared, admitted(found, shared, 1e9, dropped, narrow=True))
        assert not dropped and {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in shared.items()}
        list(node.train(Task(2, after), node.users()))
    (a, b) = (next(v for n, v in after.items() if f".{f}." in n).double() for f in ("lora_A", "lora_B"))
    u, s, v = torch.linalg.svd(b @ a)
    torch.testing.assert_close(b[:, :1] @ a[:1], s[0] * torch.outer(u[:, 0], v[0]), atol=1e-5, rtol=1e-5)


def test_a_node_caps_the_rank_of_its_users(nodes: Nodes) -> None:
    with nodes("shared_only") as node:
        node.rank = 1
        assert all(beyond(r.update) == 0 for r in rounds(node, begun(node))[0])
        node.rank = 7
        assert all(beyond(r.update) > 0 for r in rounds(node, begun(node))[0])


def test_ranks_are_drawn_by_the_seed_and_all_of_them_occur() -> None:
    scenario = Scenario(shared_ranks=(2, 4, 8))
    drawn = [rank_of(scenario, f"u{i}") for i in range(300)]
    assert all(80 < drawn.count(rank) < 120 for rank in (2, 4, 8))
    assert drawn == [rank_of(scenario, f"u{i}") for i in range(300)]
    assert drawn != [rank_of(replace(scenario, seed=1), f"u{i}") for i in range(300)]
    assert max(rank_of(scenario, f"u{i}", 4) for i in range(300)) == 4
    assert rank_of(Scenario(), "u") == Scenario().shared.rank


def test_a_release_has_fewer_ranks_only_where_that_is_said_and_in_both_factors() -> None:
    shared = {"x.lora_A.weight": torch.zeros(3, 4), "x.lora_B.weight": torch.zeros(5, 3)}

    def let_in(a: tuple[int, int], b: tuple[int, int], narrow: bool = True) -> bool:
        update = {"x.lora_A.weight": torch.ones(a), "x.lora_B.weight": torch.ones(b)}
        return bool(list(admitted([Release(update, 1.0)], shared, 1e9, Counter(), narrow=narrow)))

    assert let_in((2, 4), (5, 2)) and let_in((3, 4), (5, 3), narrow=False)
    assert not let_in((2, 4), (5, 2), narrow=False)
    for wrong in (((2, 4), (5, 3)), ((4, 4), (5, 4)), ((0, 4), (5, 0)), ((2, 3), (5, 2)), ((2, 4), (4, 2))):
        assert not let_in(*wrong)


@pytest.mark.parametrize(
    "settings", [{"shared_ranks": (9,)}, {"shared_ranks": (0,)}, {"shared_ranks": (2,), "shared": replace(LORA, kind="core")}]
)
def test_impossible_ranks_are_refused(settings: Any) -> None:
    with pytest.raises(InputError, match="shared_ranks must be"):
        Scenario(**settings)


def test_who_has_nothing_to_say_and_fewer_ranks_sends_zeros_before_the_noise(nodes: Nodes) -> None:
    """A user whose budget is spent is to look like any other: nothing but noise may be in the release."""
    privacy = Privacy("both", user=UserLevel(mechanism="local"))
    with nodes("shared_only", privacy=privacy, purse=_Spent(1.0, 1.0), **ONE) as node:
        node.own = _Bare()
        releases = list(node.train(Task(1, begun(node), participations=1), node.users()))
    assert len(releases) == 2
    assert all(r.update and not any(bool(v.any()) for v in r.update.values()) for r in releases)


class _Spent(Free):
    """A purse with nothing left for anybody."""

    def book(self, _round: int, _scheme: object, costs: Any) -> frozenset[str]:
        assert costs
        return frozenset()


class _Bare:
    """Noise of a user's own that is none."""

    ledger, run = Free.ledger, "x"

    def book(self, _task: Task, users: Any) -> frozenset[str]:
        return frozenset(users)

    def noised(self, release: Release, _task: Task, _user: str) -> Release:
        return release

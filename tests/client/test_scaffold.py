"""SCAFFOLD on a node: the paper's two equations, what stays home, and what of it leaves."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from client.node import Node
from configs.scenario import ExampleLevel, Privacy, Scenario
from server import aggregation
from strategies import aggregators, fit
from strategies.aggregators.scaffold import CONTROL, OWN
from strategies.base import Release, Task
from strategies.privacy import rules
from strategies.tree import State
from tests.client.federation import SCENARIO, SGD, Free, Nodes, kept, moved, same

SCAFFOLD = aggregators.build("scaffold", {})
TWO = replace(SGD, batch=2, epochs=2, lr=0.1)  # six steps of ann, four of bob
LR = TWO.lr
STEPS = {"ann": 6, "bob": 4}
USERS = ("ann", "bob")


def near(node: Node) -> State:
    """A shared adapter with both factors away from zero, and control variates that are zero."""
    draw = torch.Generator().manual_seed(5)
    found = node.split.shared_start().items()
    return {n: v if "/" in n else v + 0.3 * torch.randn(v.shape, generator=draw) for n, v in found}


def task(number: int, shared: State, cohort: int = 2, everyone: int = 2) -> Task:
    return Task(number, shared, cohort=cohort, everyone=everyone, participations=3)


def trained(node: Node, count: int) -> tuple[list[State], list[list[Release]]]:
    """The shared state before each of so many rounds and after the last, and the releases of each."""
    states, sent = [near(node)], []
    for number in range(1, count + 1):
        sent.append(list(node.train(task(number, states[-1]), USERS)))
        states.append(SCAFFOLD.apply({}, states[-1], iter(sent[-1]))[1])
    return states, sent


def block(state: State, name: str) -> State:
    """One block's tensors by their names; of a shared state "" is the adapter."""
    if not name:
        return {n: v for n, v in state.items() if "/" not in n}
    return {n.removeprefix(f"{name}/"): v for n, v in state.items() if n.startswith(f"{name}/")}


def fedit(nodes: Nodes, at: State, user: str, number: int, **changes: Any) -> State:
    """A user's plain update from there."""
    with nodes("shared_only", **changes) as node:
        return next(iter(node.train(Task(number, at), [user]))).update


def test_a_first_round_is_fedits_and_leaves_the_mean_gradient_of_its_steps(nodes: Nodes) -> None:
    with nodes("shared_only", aggregator="scaffold", shared_training=TWO) as node:
        states, (sent,) = trained(node, 1)
        own = {user: block(kept(node, user), OWN) for user in USERS}
    for user, release in zip(USERS, sent, strict=True):
        plain = fedit(nodes, block(states[0], ""), user, 1, shared_training=TWO)
        same(block(release.update, ""), plain)
        same(own[user], {n: -v / (STEPS[user] * LR) for n, v in plain.items()}, 1e-5)
        same(block(release.update, CONTROL), own[user], 1e-5)


def test_a_later_round_takes_every_step_by_the_gradient_less_ones_own_control_variate_and_with_everybodys(nodes: Nodes) -> None:
    one = replace(SGD, epochs=2, lr=LR)  # two steps over everything
    with nodes("shared_only", aggregator="scaffold", shared_training=one) as node:
        states, sent = trained(node, 2)
        before = kept(node, "ann", 2)
        c, own, y = block(states[1], CONTROL), block(before, OWN), block(states[1], "")
        assert moved(c, own) > 1e-3, "the test itself: users must differ"
        for _ in range(2):
            step = fedit(nodes, y, "ann", 2, shared_training=replace(one, epochs=1))
            y = {n: v + step[n] - LR * (c[n] - own[n]) for n, v in y.items()}
        same({n: states[1][n] + v for n, v in block(sent[1][0].update, "").items()}, y, 1e-5)
        want = {n: own[n] - c[n] + (states[1][n] - y[n]) / (2 * LR) for n in own}
        same(block(kept(node), OWN), want, 1e-5)


@pytest.mark.parametrize("scheme", ["shared_only", "dual", "ditto", "fedsa", "fedper", "oppu"])
def test_where_everyone_takes_part_corrections_cancel_over_users(nodes: Nodes, scheme: str) -> None:
    with nodes(scheme, aggregator="scaffold", shared_training=TWO) as node:
        states, sent = trained(node, 3)
        own = [block(kept(node, user), OWN) for user in USERS]
        assert all(not key.startswith(OWN) for releases in sent for r in releases for key in r.update)
    c = block(states[-1], CONTROL)
    assert c.keys() == own[0].keys() == block(sent[-1][0].update, "").keys() and c
    assert moved(c, own[0]) > 1e-3
    same(c, {n: (own[0][n] + own[1][n]) / 2 for n in c}, 1e-5)


def test_a_user_who_is_alone_corrects_nothing(nodes: Nodes) -> None:
    with nodes("shared_only", aggregator="scaffold", shared_training=TWO) as node:
        shared = near(node)
        for number in (1, 2):
            (release,) = node.train(task(number, shared, 1, 1), ["ann"])
            same(block(release.update, ""), fedit(nodes, block(shared, ""), "ann", number, shared_training=TWO), 1e-5)
            shared = SCAFFOLD.apply({}, shared, iter([release]))[1]


def test_of_a_change_as_much_goes_to_the_server_as_there_are_users_in_the_round(nodes: Nodes) -> None:
    found = []
    for cohort, everyone in ((2, 2), (1, 4), (1, 0)):
        with nodes("shared_only", aggregator="scaffold", shared_training=TWO) as node:
            (release,) = node.train(task(1, near(node), cohort, everyone), ["ann"])
            found.append((block(release.update, CONTROL), block(kept(node), OWN)))
    whole, quarter, unsaid = found
    same({n: v / 4 for n, v in whole[0].items()}, quarter[0])
    same(whole[1], quarter[1])
    same(whole[0], unsaid[0])


def test_under_guarantee_e_what_leaves_of_a_control_variate_follows_from_the_noised_update_and_the_broadcasts(nodes: Nodes) -> None:
    how = Privacy("example", example=ExampleLevel(shared_clip=0.1, private_clip=0.1))
    with nodes("shared_only", aggregator="scaffold", shared_training=TWO, privacy=how, purse=Free(1.0, 0.1)) as node:
        states, sent = trained(node, 3)
    for before, releases in zip(states, sent, strict=False):
        for user, release in zip(USERS, releases, strict=True):
            y, c = block(release.update, ""), block(before, CONTROL)
            same(block(release.update, CONTROL), {n: -c[n] - y[n] / (STEPS[user] * LR) for n in y}, 1e-4)


def test_a_clip_bounds_the_mean_gradient_and_not_the_correction(nodes: Nodes) -> None:
    clipped = replace(TWO, max_norm=0.05)
    with nodes("shared_only", aggregator="scaffold", shared_training=clipped) as node:
        trained(node, 3)
        for user in USERS:
            own = block(kept(node, user), OWN)
            assert 0.01 < sum(float(v.square().sum()) for v in own.values()) ** 0.5 <= 0.05 * (1 + 1e-3)


def test_a_user_of_fewer_ranks_has_no_control_variate_beyond_them(nodes: Nodes) -> None:
    with nodes("shared_only", aggregator="scaffold", shared_training=TWO, shared_ranks=(1,)) as node:
        shared = {n: torch.ones_like(v) if n.startswith(CONTROL) else v for n, v in near(node).items()}
        (release,) = node.train(task(1, shared), ["ann"])
        for state in (release.update, block(kept(node), OWN)):
            for name, value in state.items():
                assert not value.select(1 if ".lora_B." in name else 0, 1).any() and bool(value.any())


def test_a_user_who_takes_no_step_changes_no_control_variate(nodes: Nodes) -> None:
    with nodes("shared_only", aggregator="scaffold", shared_training=replace(TWO, epochs=0)) as node:
        shared = {n: torch.ones_like(v) for n, v in near(node).items()}
        (release,) = node.train(task(1, shared), ["ann"])
        assert not any(bool(v.any()) for v in (*release.update.values(), *block(kept(node), OWN).values()))


def scenario(**changes: Any) -> Scenario:
    return replace(SCENARIO, aggregator="scaffold", scheme="dual", **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"shared_training": replace(SGD, optimizer="adamw")}, "set shared_training.optimizer=sgd, not adamw"),
     ({"shared_training": replace(SGD, momentum=0.5)}, "set shared_training.momentum=0, not 0.5"),
     ({"shared_training": replace(SGD, weight_decay=0.5)}, "weight_decay"), ({"shared_training": replace(SGD, prior=1.0)}, "prior"),
     ({"shared_training": replace(SGD, early_stopping=True)}, "early_stopping=false"),
     ({"shared_training": replace(SGD, lr=0.0)}, "lr above 0"), ({"scheme": "mr_mtl"}, "'mr_mtl' sends something else"),
     ({"scheme": "ifca"}, "sends something else"), ({"scheme": "fedrep"}, "sends something else")],
)  # fmt: skip
def test_where_steps_are_not_plain_or_something_else_is_sent_it_is_refused(changes: dict[str, Any], said: str) -> None:
    assert not list(fit.problems(scenario()))
    with pytest.raises(Exception, match=said):
        aggregation.build(scenario() if not changes else replace(scenario(), **changes))


def test_guarantee_e_takes_it_and_guarantee_u_does_not() -> None:
    found = {name: list(rules.problems(scenario(privacy=Privacy(name)))) for name in ("example", "user", "both")}  # type: ignore[arg-type]
    assert not found["example"]
    assert all(any("control variate" in sentence for sentence in found[name]) for name in ("user", "both"))


def test_the_servers_step_is_for_the_adapter_and_not_for_the_control_variate() -> None:
    shared = {"x.lora_A.weight": torch.zeros(1, 2), f"{CONTROL}/x.lora_A.weight": torch.zeros(1, 2)}
    given = [Release({n: torch.full((1, 2), 2.0 * k) for n in shared}, 2.0) for k in (1, 3)]
    found = aggregators.build("scaffold", {"lr": 0.5}).apply({}, shared, iter(given))[1]
    assert [v.tolist() for v in found.values()] == [[[1.0, 1.0]], [[2.0, 2.0]]]

"""Every registered aggregator trains a federation, side by side in one process and over Flower's messages."""

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch

from client import base as bases
from client.base import Base
from client.data.types import Dataset, Encoded, Splits
from client.node import Node
from client.private import PrivateStore
from client.split import split
from configs.errors import InputError
from configs.scenario import Adapter, Local, Privacy, Scenario, UserLevel, load
from server import aggregation, checkpoint, rounds
from server.grid import GridRuntime
from simulations.fused import FusedRuntime
from strategies.aggregators import AGGREGATORS
from strategies.base import Task
from strategies.privacy import rules
from strategies.tree import State, norm
from tests.server.flower_world import USERS, LocalGrid, distance, fused, scenario_of, shift
from tests.strategies.given import after, effect

TINY = Adapter(rank=2, layers=1, targets=("q_proj", "down_proj"))
SGD = Local(optimizer="sgd", lr=0.5, batch=4)
SCENARIO = Scenario(rounds=2, shared=TINY, private=TINY, shared_training=SGD, private_training=SGD, evaluate_every=0)


@pytest.fixture(scope="session")
def data(texts: Callable[..., list[Encoded]]) -> Dataset:
    """Five users of a few texts."""
    users = {f"user{i}": Splits(tuple(texts(i, 3 + i % 2)), (), ()) for i in range(5)}
    return Dataset(users, {}, "answer", (), (), "text")


@pytest.mark.parametrize(("name", "scheme"), [*zip(AGGREGATORS, itertools.cycle(["shared_only", "dual"]), strict=False)])
def test_every_aggregator_trains_two_rounds(base: Base, data: Dataset, tmp_path: Path, name: str, scheme: str) -> None:
    root_users = ("user3",) if AGGREGATORS[name]().rooted else ()
    scenario = replace(SCENARIO, aggregator=name, scheme=scheme, root_users=root_users)
    aggregator, node = aggregation.build(scenario), Node(scenario, base, data, PrivateStore(tmp_path / "private"))
    start = node.split.shared_start()
    end = rounds.run(scenario, FusedRuntime(node), aggregator, start, tmp_path / "run")
    node.close()
    assert [(row["releases"], dict(row["dropped"])) for row in end.rows] == [(5 - len(root_users), {})] * 2
    assert all(isfinite(row["train_loss"]) and row["update_norm"] > 1e-4 for row in end.rows)
    assert end.shared.keys() == start.keys() and {n.split(".")[-2] for n in start} == traveling(name)
    assert end.rows[1]["train_loss"] < end.rows[0]["train_loss"]


def traveling(name: str) -> set[str]:
    """The factors that the server sends in any round."""
    built = AGGREGATORS[name]()
    return {*built.carried, *built.factors(1), *built.factors(2)}


def test_a_node_does_at_home_what_the_aggregator_says(base: Base, data: Dataset, tmp_path: Path) -> None:
    sent = {}
    for name in ("fedit", "fedrot"):
        node = Node(replace(SCENARIO, aggregator=name, scheme="shared_only"), base, data, PrivateStore(tmp_path / name))
        draw = torch.Generator().manual_seed(0)
        task = Task(2, {n: v + 0.2 * torch.randn(v.shape, generator=draw) for n, v in node.split.shared_start().items()})
        sent[name] = [after(task.shared, release) for release in node.train(task, node.users())]
        node.close()
    for plain, turned in zip(*sent.values(), strict=True):
        assert distance(effect(plain), effect(turned)) < 1e-5 < 1e-4 < distance(plain, turned)


# ------------------------------------------------------------------ what a node does for an aggregator
def sent(base: Base, data: Dataset, folder: Path, task: Callable[[Node], Task], **changes: Any) -> tuple[list[State], list[State]]:
    """What every user sends in one round, and what each keeps."""
    node = Node(replace(SCENARIO, **changes), base, data, PrivateStore(folder))
    found = [release.update for release in node.train(task(node), node.users())]
    node.close()
    return found, [PrivateStore(folder).load(user, 2) or {} for user in node.users()]


def first(node: Node) -> Task:
    """A first round that trains what is shared from factors away from zero."""
    draw = torch.Generator().manual_seed(0)
    return Task(1, {n: v + 0.2 * torch.randn(v.shape, generator=draw) for n, v in node.split.shared_start().items()}, ("shared",))


def prox(base: Base, data: Dataset, folder: Path, mu: float | None, epochs: int, task: Callable[[Node], Task] = first,
         scheme: str = "shared_only") -> tuple[list[State], list[State]]:  # fmt: skip
    """A round of FedProx, or of FedIT without a ``mu``, of so many full steps each."""
    options = {} if mu is None else {"mu": mu}
    how = replace(SGD, batch=8, epochs=epochs, lr=0.5)
    return sent(base, data, folder / f"{mu}-{epochs}-{scheme}", task, aggregator="fedit" if mu is None else "fedprox", scheme=scheme,
                aggregator_options=options, shared_training=how, private_training=how)  # fmt: skip


def test_fedprox_adds_mu_times_the_way_from_what_was_received_to_the_gradient(base: Base, data: Dataset, tmp_path: Path) -> None:
    one, two = (prox(base, data, tmp_path, None, epochs)[0] for epochs in (1, 2))
    for mu in (0.0, 0.6):
        assert all(torch.equal(a[n], b[n]) for a, b in zip(one, prox(base, data, tmp_path, mu, 1)[0], strict=True) for n in a)
        found = prox(base, data, tmp_path, mu, 2)[0]
        for begun, plain, pulled in zip(one, two, found, strict=True):
            for name, value in pulled.items():
                assert torch.equal(value, plain[name]) == (mu == 0)
                torch.testing.assert_close(value, plain[name] - 0.5 * mu * begun[name], atol=1e-6, rtol=1e-5)


def test_a_strong_pull_keeps_users_at_what_they_received(base: Base, data: Dataset, tmp_path: Path) -> None:
    plain, held = (prox(base, data, tmp_path, mu, 12)[0] for mu in (0.0, 1.9))
    assert all(norm(b) < 0.4 * norm(a) for a, b in zip(plain, held, strict=True))


def test_fedprox_pulls_nothing_that_trains_apart_from_what_is_shared(base: Base, data: Dataset, tmp_path: Path) -> None:
    def alone(node: Node) -> Task:
        return replace(first(node), turns=("private",))

    one, two = (prox(base, data, tmp_path, mu, 3, alone, "dual")[1] for mu in (0.0, 1.5))
    assert all(a.keys() == b.keys() and a and all(torch.equal(a[n], b[n]) for n in a) for a, b in zip(one, two, strict=True))


def test_lora_a2_sees_the_factor_that_takes_no_turn(base: Base, data: Dataset, tmp_path: Path) -> None:
    for number in (1, 2):
        task = lambda node, number=number: replace(first(node), round=number)  # noqa: E731 - one line
        whole, few = (
            sent(base, data, tmp_path / f"{number}-{keep}", task, aggregator="lora_a2", aggregator_options={"keep": keep})[0]
            for keep in (1.0, 0.25)
        )
        for a, b in zip(whole, few, strict=True):
            kept = {n: v.any(0 if ".lora_B." in n else 1, keepdim=True) for n, v in b.items()}
            assert len(a) == 2 and sum(int(v.sum()) for v in kept.values()) == 1  # of two modules' two ranks
            assert all(v.all() for v in a.values()) and all(torch.equal(b[n], a[n].where(kept[n], 0.0)) for n in a)


@pytest.mark.parametrize("name", ["flora", "frlora"])
def test_a_run_that_is_cut_off_goes_on_as_if_it_had_not_been(base: Base, data: Dataset, tmp_path: Path, name: str) -> None:
    scenario = replace(SCENARIO, aggregator=name, scheme="dual", rounds=3)
    aggregator, ends = aggregation.build(scenario), []
    for folder, stops in (("whole", (3,)), ("parts", (1, 3))):
        for last in stops:
            node = Node(scenario, base, data, PrivateStore(tmp_path / folder / "private"))
            start, runtime = node.split.shared_start(), FusedRuntime(node)
            with suppress(KeyboardInterrupt):
                rounds.run(scenario, runtime, aggregator, start, tmp_path / folder / "run", stopping_after(last))
            node.close()
        ends.append(checkpoint.latest(tmp_path / folder / "run"))
    whole, parts = (end for end in ends if end)
    assert whole.round == parts.round == 3
    for a, b in ((whole.shared, parts.shared), (whole.memory, parts.memory)):
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def stopping_after(last: int) -> Callable[[dict[str, Any]], None]:
    """Raises once a round is final, as a person would."""

    def observe(row: dict[str, Any]) -> None:
        if row["round"] == last:
            raise KeyboardInterrupt

    return observe


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    "name",
    ["fedrot", "fedsvd", "flexlora", "flora", "fltrust root_users=[u1,u3]", "frlora", "lora_a2", "multi_krum", "scaffold",
     "strategies.aggregators.median.median"],
)  # fmt: skip
def test_over_flower_the_adapter_comes_out_as_in_one_process(world: str, tmp_path: Path, name: str) -> None:
    sgd = "shared_training.optimizer=sgd shared_training.lr=0.3"
    overrides = f"{world} {sgd} aggregator={name} users_per_round=5 scheme=shared_only shared.targets=[q_proj]"
    scenario = scenario_of(overrides)
    here, node = fused(scenario, tmp_path / "here")
    start = node.split.shared_start()
    node.close()
    grid = LocalGrid(overrides)
    there = rounds.run(scenario, GridRuntime(grid, "x"), aggregation.build(scenario), start, tmp_path / "there")
    assert (moved := shift(effect(there.shared), effect(start))) > 1e-4
    assert distance(effect(here.shared), effect(there.shared)) < 1e-4 * moved
    sent = [reply for message, reply in grid.sent if message.metadata.message_type == "train"]
    count = 3 * (min(5, USERS - len(scenario.root_users)) + len(scenario.root_users))
    assert (len(sent) < sum(len(reply.content) // 2 for reply in sent) == count) != aggregation.build(scenario).linear


@pytest.mark.usefixtures("home")
def test_a_factor_that_takes_no_turn_is_not_sent(world: str) -> None:
    overrides = f"{world} aggregator=rolora scheme=shared_only"
    start = split(scenario_of(world), bases.load(scenario_of(world).model, "cpu")).shared_start()
    for number, factor in ((1, "lora_B"), (2, "lora_A")):
        runtime = GridRuntime(LocalGrid(overrides), "x")
        for release in runtime.train(Task(number, start), runtime.users()):
            assert release.update and all(f".{factor}." in name for name in release.update)


# ------------------------------------------------------------------ what is refused
NO_WORK = {
    "scheme=shared_only shared.kind=core aggregator=fedsvd": "shared.kind=core has none",
    "scheme=fedsa aggregator=flexlora": "scheme 'fedsa' shares lora_A only",
    "scheme=fedsa aggregator=ffa": "trains lora_B only, and scheme 'fedsa' shares lora_A of shared",
    "scheme=ditto aggregator=flora": "keeps copies of them",
    "scheme=fedalt users_per_round=5 weights=uniform": "scheme 'fedalt' needs users_per_round=0, not 5",
    "scheme=mr_mtl private_from=1": "scheme 'mr_mtl' needs private_from=0, not 1",
    "scheme=fedrep aggregator=ffa": "trains lora_B only, and scheme 'fedrep' shares lora_A of private",
    "scheme=dual shared.kind=core aggregator=flora": "shared.kind=core has none",
    "scheme=dual aggregator=fedprox aggregator_options.mu=4 shared_training.lr=0.5": "use less than 4, 2 / shared_training.lr",
}
WORK = ("scheme=dual aggregator=fedprox aggregator_options.mu=3.9 shared_training.lr=0.5",
        "scheme=local_only aggregator=fedsvd", "scheme=fedsa", "scheme=dual shared.kind=core aggregator=krum",
        "scheme=fedrep private.kind=mixed aggregator=ffa", "aggregator=flower.FedYogi", "scheme=oppu aggregator=flora",
        "scheme=mr_mtl private_from=0", "scheme=fedalt weights=uniform users_per_round=0 private_from=0")  # fmt: skip


@pytest.mark.parametrize("settings", NO_WORK)
def test_an_aggregator_that_would_have_nothing_to_do_is_refused(settings: str) -> None:
    with pytest.raises(InputError, match=NO_WORK[settings]):
        aggregation.build(load("movielens", settings.split()))


@pytest.mark.parametrize("settings", WORK)
def test_and_no_other_is(settings: str) -> None:
    aggregation.build(load("movielens", settings.split()))


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("how", [Privacy(guarantee="user"), Privacy(secure=True)], ids=["user", "secure"])
def test_what_needs_single_users_is_refused_where_there_is_their_sum_only(name: str, how: Privacy) -> None:
    found = list(rules.problems(Scenario(weights="uniform", max_release_norm=1, aggregator=name, privacy=how)))
    built = AGGREGATORS[name]()
    assert bool(found) != (built.linear and not (built.controls and how.of_users))
    why = "keeps a user's whole control variate at home" if built.controls else "needs single users' updates"
    assert all(f"'{name}' {why}" in sentence for sentence in found)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_where_users_noise_their_own_releases_any_aggregator_may_see_them(name: str) -> None:
    how = Privacy(guarantee="user", user=UserLevel(mechanism="local"))
    found = list(rules.problems(Scenario(weights="uniform", aggregator=name, privacy=how)))
    assert bool(found) == AGGREGATORS[name]().controls


def test_correlated_noise_wants_the_same_tensors_in_every_round() -> None:
    banded = "privacy=user privacy.user.mechanism=banded weights=uniform scheme=dual users_per_round=5 sampling=cyclic"
    found = {n: list(rules.problems(load("movielens", f"{banded} aggregator={n}".split()))) for n in ("rolora", "fedsvd")}
    assert "releases other tensors in every other round" in found["rolora"][0] and not found["fedsvd"]

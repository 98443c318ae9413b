"""Every registered aggregator trains a federation, side by side in one process and over Flower's messages."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path

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
from server import aggregation, rounds
from server.grid import GridRuntime
from simulations.fused import FusedRuntime
from strategies.aggregators import AGGREGATORS
from strategies.base import Task
from strategies.privacy import rules
from tests.server.flower_world import LocalGrid, distance, fused, scenario_of, shift
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
    scenario = replace(SCENARIO, aggregator=name, scheme=scheme)
    aggregator, node = aggregation.build(scenario), Node(scenario, base, data, PrivateStore(tmp_path / "private"))
    start = node.split.shared_start()
    end = rounds.run(scenario, FusedRuntime(node), aggregator, start, tmp_path / "run")
    node.close()
    assert [(row["releases"], dict(row["dropped"])) for row in end.rows] == [(5, {}), (5, {})]
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


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", ["fedrot", "fedsvd", "flexlora", "multi_krum", "rolora", "strategies.aggregators.median.median"])
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
    assert (len(sent) < sum(len(reply.content) // 2 for reply in sent) == 3 * 5) != aggregation.build(scenario).linear


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
    "scheme=fedrep aggregator=ffa": "trains lora_B only, and scheme 'fedrep' shares lora_A of private",
}
WORK = ("scheme=local_only aggregator=fedsvd", "scheme=fedsa", "scheme=dual shared.kind=core aggregator=krum",
        "scheme=fedrep private.kind=mixed aggregator=ffa", "aggregator=flower.FedYogi")  # fmt: skip


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
    assert bool(found) != AGGREGATORS[name]().linear
    assert all(f"'{name}' needs single users' updates" in sentence for sentence in found)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_where_users_noise_their_own_releases_any_aggregator_may_see_them(name: str) -> None:
    how = Privacy(guarantee="user", user=UserLevel(mechanism="local"))
    assert not list(rules.problems(Scenario(weights="uniform", aggregator=name, privacy=how)))


def test_correlated_noise_wants_the_same_tensors_in_every_round() -> None:
    banded = "privacy=user privacy.user.mechanism=banded weights=uniform scheme=dual users_per_round=5 sampling=cyclic"
    found = {n: list(rules.problems(load("movielens", f"{banded} aggregator={n}".split()))) for n in ("rolora", "fedsvd")}
    assert "releases other tensors in every other round" in found["rolora"][0] and not found["fedsvd"]

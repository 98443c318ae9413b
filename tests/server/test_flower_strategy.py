"""Flower's strategies are aggregators of ours, and a scenario of ours is a strategy of Flower's."""

import gc
import inspect
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy
from flwr.serverapp.strategy import Strategy
from flwr.supercore.task_identity import TaskIdentity

from client import answers as client_app
from client import base as bases
from client.split import split
from configs.errors import InputError
from configs.scenario import Scenario, load
from server import aggregation, checkpoint, rounds
from server import flower_aggregator as bridge
from server.checkpoint import Checkpoint
from server.flower_strategy import HomingStrategy
from server.grid import GridRuntime
from strategies import aggregators
from strategies.base import Aggregator, Release, Task
from strategies.tree import State
from tests.server import foreign
from tests.server.flower_world import RUN, USERS, LocalGrid, scenario_of

OPTIONS: dict[str, dict[str, float]] = {
    "FedAvgM": {"server_momentum": 0.7, "server_learning_rate": 0.9},
    "FedYogi": {"eta": 0.03, "beta_1": 0.8},
    "FedAdam": {"eta": 0.03},
    "FedTrimmedAvg": {"beta": 0.25},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
    "QFedAvg": {"client_learning_rate": 0.1},
    "tests.server.foreign.Remembers": {"pace": 0.25, "every": 2},
}
USABLE = [name for name in strategy.__all__ if name not in bridge.REFUSED and name not in bridge.CONTRACTS]
ALL = [*USABLE, "tests.server.foreign.Remembers"]
NAMES = ("q.lora_A.weight", "q.lora_B.weight")
ROUNDS = 4


def adapter(seed: int) -> State:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"q.lora_A.weight": (2, 5), "q.lora_B.weight": (4, 2)}
    return {name: 0.1 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def releases(round_: int, users: int = 7) -> list[Release]:
    """Users of different weights and losses, other ones each round."""
    found = []
    for user in range(users):
        weight = 1.0 + user % 3
        update = {name: value * weight for name, value in adapter(100 * round_ + user).items()}
        found.append(Release(update, weight, 1, {"loss": 3.0 + user, "examples": 2.0}))
    return found


def built(name: str) -> Aggregator:
    return bridge.aggregator(name, OPTIONS.get(name, {}))


def carried(aggregator: Aggregator, rounds_: Sequence[int], start: State, memory: State | None = None) -> tuple[State, State]:
    memory = aggregator.init(start) if memory is None else memory
    for number in rounds_:
        memory, start = aggregator.apply(memory, start, releases(number))
    return memory, start


def one_object(theirs: Strategy, start: State) -> State:
    """What a program that holds one strategy through all rounds gets, as Flower means it to be used."""
    for number in range(1, ROUNDS + 1):
        sent = ArrayRecord(dict(start))
        theirs.configure_train(number, sent, ConfigRecord(), cast(Any, LocalNodes()))
        replies = []
        for user, release in enumerate(releases(number)):
            trained = {n: start[n] + release.update[n] / release.weight for n in start}
            said = MetricRecord({"num-examples": release.weight, "train_loss": release.metrics["loss"] / release.metrics["examples"]})
            content = RecordDict({"arrays": ArrayRecord(trained), "metrics": said})
            replies.append(Message(content, reply_to=Message(RecordDict(), user + 1, "train")))
        arrays, _ = theirs.aggregate_train(number, replies)
        assert arrays is not None
        start = {name: value.float() for name, value in arrays.to_torch_state_dict().items()}
    return start


class LocalNodes:
    def get_node_ids(self) -> list[int]:
        return list(range(1, 8))


TASK = ("_task_id", "_run_id", "_node_id")


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flower's own objects make messages inside a task only. Two of them collect garbage all the time, so let there be little."""
    for name in TASK:
        monkeypatch.setattr(TaskIdentity, name, 1)
    gc.freeze()
    yield
    gc.unfreeze()


# ---------------------------------------------------------------------- theirs as ours
def test_flowers_fedavg_is_fedit() -> None:
    theirs = carried(built("FedAvg"), range(1, ROUNDS + 1), adapter(0))[1]
    ours = carried(aggregators.build("fedit", {}), range(1, ROUNDS + 1), adapter(0))[1]
    for name in NAMES:
        torch.testing.assert_close(theirs[name], ours[name], atol=1e-6, rtol=1e-6)
        assert float((ours[name] - adapter(0)[name]).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ALL)
def test_names_float32_and_inputs_are_kept_whatever_a_strategy_makes_of_them(name: str) -> None:
    start, given = {**adapter(0), "elsewhere": torch.ones(3)}, releases(1)
    memory, after = built(name).apply({}, start, iter(given))
    assert list(after) == list(start) and all(value.dtype == torch.float32 for value in after.values())
    assert all(after[n].shape == start[n].shape for n in start) and torch.equal(after["elsewhere"], torch.ones(3))
    assert not any(torch.equal(after[n], start[n]) for n in NAMES)
    assert all(torch.equal(start[n], adapter(0)[n]) for n in NAMES)
    assert all(torch.equal(a.update[n], b.update[n]) for a, b in zip(given, releases(1), strict=True) for n in NAMES)
    assert set(memory) != set()


@pytest.mark.usefixtures("task")
@pytest.mark.parametrize("name", ALL)
def test_a_new_object_of_theirs_each_round_gives_what_one_object_carried_through_all_rounds_gives(name: str) -> None:
    kind: Any = getattr(strategy, name, foreign.Remembers)
    fixed = {k: v for k, v in bridge.OURS.items() if k in inspect.signature(kind).parameters}
    want = one_object(kind(**fixed, **OPTIONS.get(name, {})), adapter(0))
    found = carried(built(name), range(1, ROUNDS + 1), adapter(0))[1]
    for tensor in NAMES:
        torch.testing.assert_close(found[tensor], want[tensor], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("name", ["FedAvgM", "FedYogi", "FedAdam", "FedAdagrad", "tests.server.foreign.Remembers"])
def test_a_run_resumed_from_its_checkpoint_equals_one_that_was_never_stopped(name: str, tmp_path: Path) -> None:
    memory, shared = carried(built(name), (1, 2), adapter(0))
    assert len(memory) > 1  # more than the number of the round
    checkpoint.commit(tmp_path, Checkpoint(2, shared, memory, []))
    last = checkpoint.latest(tmp_path)
    assert last is not None
    found = carried(built(name), (3, 4), last.shared, last.memory)
    want = carried(built(name), (1, 2, 3, 4), adapter(0))
    for a, b in zip(found, want, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    without = carried(built(name), (3, 4), last.shared, {})[1]
    assert not all(torch.equal(without[n], want[1][n]) for n in NAMES)  # the memory does count


def test_a_round_without_a_release_changes_nothing() -> None:
    memory, shared = carried(built("FedAdam"), (1,), adapter(0))
    for given in ([], [Release({}, 0.0, 1, {"loss": 1.0})]):
        assert built("FedAdam").apply(memory, shared, iter(given)) == (memory, shared)


@pytest.mark.parametrize("task_id", [None, 5])
def test_what_belongs_to_the_whole_process_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, task_id: int | None) -> None:
    for name in TASK:
        monkeypatch.setattr(TaskIdentity, name, task_id)
    before = random.getstate(), gc.get_freeze_count(), gc.isenabled()
    carried(built("FedYogi"), (1, 2), adapter(0))
    assert before == (random.getstate(), gc.get_freeze_count(), gc.isenabled())
    assert [getattr(TaskIdentity, name) for name in TASK] == [task_id] * 3


def test_a_median_is_of_users_not_of_their_weights() -> None:
    given = [Release({n: v * w for n, v in adapter(seed).items()}, w) for seed, w in ((1, 1.0), (2, 1.0), (3, 1000.0))]
    found = bridge.aggregator("FedMedian", {}).apply({}, adapter(0), given)[1]
    for name in NAMES:
        want = adapter(0)[name] + torch.stack([adapter(seed)[name] for seed in (1, 2, 3)]).median(0).values
        torch.testing.assert_close(found[name], want, atol=1e-6, rtol=1e-6)


BAD = {
    "flower.FedYogy": ({}, "unknown aggregator 'flower.FedYogy' .did you mean 'flower.FedYogi'"),
    "flower.Strategy": ({}, "unknown aggregator 'flower.Strategy'"),
    "flower.Result": ({}, "unknown aggregator 'flower.Result'"),
    "flower.nowhere.Mean": ({}, "flower.nowhere.Mean': No module named 'nowhere'"),
    "flower.json.JSONDecoder": ({}, "unknown aggregator 'flower.json.JSONDecoder'"),
    "flower.FedProx": ({}, "cannot be used: its proximal term .* use flower.FedAvg or fedit"),
    "flower.FedXgbBagging": ({}, "cannot be used: it aggregates trees"),
    "flower.DifferentialPrivacyServerSideFixedClipping": ({}, "cannot be used: it wraps another strategy, .* in no ledger"),
    "flower.FedAvgM": ({"server_momentun": 0.9}, "unknown option of flower.FedAvgM 'server_momentun' .did you mean 'server_momentum'"),
    "flower.FedAvg": ({"fraction_train": 0.5}, "unknown option of flower.FedAvg 'fraction_train'"),
    "flower.FedAdam": ({"weighted_by_key": 1.0}, "unknown option of flower.FedAdam 'weighted_by_key'"),
    "flower.QFedAvg": ({}, "aggregator_options of 'flower.QFedAvg': missing 1 required .*'client_learning_rate'"),
    "flower.Krum": ({"num_malicious_nodes": 0.5}, "'num_malicious_nodes' of flower.Krum must be a whole number, got 0.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unknown_name_or_option_is_told_before_the_first_round_and_with_the_nearest_one(name: str) -> None:
    options, sentence = BAD[name]
    chosen = load("movielens", [f"aggregator={name}", *(f"aggregator_options.{k}={v}" for k, v in options.items())])
    with pytest.raises(InputError, match=sentence):
        aggregation.build(chosen)


def test_a_strategy_that_keeps_what_no_checkpoint_holds_is_refused() -> None:
    with pytest.raises(InputError, match=r"foreign\.Hoards' keeps 'losses' between rounds"):
        built("tests.server.foreign.Hoards").apply({}, adapter(0), releases(1))


# ---------------------------------------------------------------------- ours as theirs
@pytest.fixture
def start(world: str, home: Path) -> ArrayRecord:  # noqa: ARG001 - private adapters go there
    scenario = scenario_of(world)
    return ArrayRecord(dict(split(scenario, bases.load(scenario.model, "cpu")).shared_start()))


def by_rounds(scenario: Scenario, overrides: str, start: ArrayRecord, folder: Path) -> Checkpoint:
    shared = dict(start.to_torch_state_dict())
    return rounds.run(scenario, GridRuntime(LocalGrid(overrides), "rounds"), aggregation.build(scenario), shared, folder)


@pytest.mark.parametrize("aggregator", ["fedit", "fedavgm", "flower.FedYogi"])
def test_a_scenario_as_flowers_strategy_ends_where_our_round_loop_ends(
    world: str, start: ArrayRecord, tmp_path: Path, aggregator: str
) -> None:
    overrides = f"{world} aggregator={aggregator} users_per_round=5 personalize=1"
    scenario = scenario_of(overrides)
    last = rounds.last_round(scenario)
    result = HomingStrategy(scenario).start(LocalGrid(overrides), start, last)
    state = by_rounds(scenario, overrides, start, tmp_path / "run")
    found = result.arrays.to_torch_state_dict()
    assert list(found) == list(start) and all(torch.equal(found[n], state.shared[n]) for n in found)
    assert not any(torch.equal(found[n], v) for n, v in start.to_torch_state_dict().items())
    assert list(result.train_metrics_clientapp) == [1, 2, 3, 4] == [row["round"] for row in state.rows]
    for row in state.rows:
        said = result.train_metrics_clientapp[row["round"]]
        assert said["users"] == row["users"] and said["dropped"] == 0
        assert said["train_loss"] == row["train_loss"] and said["update_norm"] == pytest.approx(row["update_norm"])


def test_the_strategy_evaluates_in_the_rounds_in_which_the_scenario_does(world: str, start: ArrayRecord, tmp_path: Path) -> None:
    scenario = scenario_of(world)
    assert scenario.evaluate_every == 2
    result = HomingStrategy(scenario).start(LocalGrid(world), start, 3)
    rows = {row["round"]: row for row in by_rounds(scenario, world, start, tmp_path / "run").rows}
    assert list(result.evaluate_metrics_clientapp) == [2, 3] == [n for n, row in rows.items() if "validation" in row]
    want = {f"{row}.{name}": value for row, columns in rows[2]["validation"].items() for name, value in columns.items()}
    assert dict(result.evaluate_metrics_clientapp[2]) == want and want["shared_private.nll"] > 0
    never = HomingStrategy(scenario_of(f"{world} evaluate_every=0")).start(LocalGrid(f"{world} evaluate_every=0"), start, 1)
    assert not never.evaluate_metrics_clientapp


def test_the_strategy_drops_a_bad_release_and_counts_it(world: str, start: ArrayRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    real = client_app.Node.train

    def poisoned(self: Any, task: Task, users: Any) -> Any:
        for user, release in zip(users, real(self, task, users), strict=True):
            yield Release({n: v * torch.nan for n, v in release.update.items()}, release.weight) if user == "u3" else release

    monkeypatch.setattr(client_app.Node, "train", poisoned)
    overrides = f"{world} aggregator=flower.FedAvg"  # each user's own release travels, so that the server sees it
    result = HomingStrategy(scenario_of(overrides)).start(LocalGrid(overrides), start, 1)
    said = result.train_metrics_clientapp[1]
    assert said["dropped"] == 1 and said["users"] == USERS - 1
    assert all(bool(v.isfinite().all()) for v in result.arrays.to_torch_state_dict().values())


def test_the_strategy_can_start_twice_and_then_begins_again(world: str, start: ArrayRecord) -> None:
    ours = HomingStrategy(scenario_of(f"{world} aggregator=fedavgm"))
    grids = [LocalGrid(f"{world} aggregator=fedavgm", run_id=RUN + i) for i in range(2)]
    first, second = (ours.start(grid, start, 2).arrays.to_torch_state_dict() for grid in grids)
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_what_belongs_into_the_scenario_is_not_taken_from_elsewhere(world: str, start: ArrayRecord) -> None:
    for name in ("train_config", "evaluate_config"):
        with pytest.raises(InputError, match=f"{name} has no part in a run of Homing"):
            HomingStrategy(scenario_of(world)).start(LocalGrid(world), start, 1, **{name: ConfigRecord({"lr": 1.0})})  # type: ignore[arg-type]

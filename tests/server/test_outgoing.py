"""Nothing leaves a node that is not declared: whatever is wrong with an answer, the door keeps it in."""

import ast
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity

from client import outgoing, wire
from client.outgoing import BESIDE, Door, WithheldError
from client.wire import WireError
from configs.errors import InputError
from configs.scenario import load
from strategies import riding
from strategies.base import Release
from tests.server.test_wire import KINDS, RELEASE, SHARED, tampered

TYPES = {"kept": "query", "releases": "train", "rows": "evaluate"}
OPEN = Door(BESIDE, True)


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages inside a task only."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def passes(door: Door, kind: str, content: RecordDict) -> bool:
    try:
        door.reply(Message(RecordDict(), 1, TYPES[kind]), content, SHARED)
    except WireError:
        return False
    return True


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_declared_passes_the_door_as_it_is_and_nothing_else_passes(kind: str) -> None:
    made = KINDS[kind].make()
    reply = OPEN.reply(Message(RecordDict(), 1, TYPES[kind]), made, SHARED)
    assert recorddict_to_proto(reply.content) == recorddict_to_proto(made)
    cases = list(tampered(KINDS[kind]))
    assert len(cases) > 20 and [what for what, content in cases if passes(OPEN, kind, content)] == []


@pytest.mark.parametrize("kind", TYPES)
def test_an_answer_to_another_question_does_not_pass(kind: str) -> None:
    assert [other for other in TYPES if passes(OPEN, other, KINDS[kind].make())] == [kind]


def test_a_tensor_of_another_name_or_shape_than_the_shared_adapters_stays() -> None:
    for update in ({"core": torch.ones(2)}, {"q.lora_A": torch.ones(2, 4)}, {**SHARED, "private/q.lora_A": torch.ones(2, 3)}):
        content = wire.encode_releases([Release(update, 1.0)], update)
        assert not passes(OPEN, "releases", content)


def test_counters_and_scores_pass_where_they_are_let_out_and_nowhere_else() -> None:
    bare = wire.encode_releases([Release(SHARED, 3.0, 2)], SHARED)
    for lets in ((), ("counters",), ("scores",)):
        door = Door(lets)
        assert passes(door, "releases", bare) and passes(door, "kept", KINDS["kept"].make())
        assert passes(door, "releases", KINDS["releases"].make()) == ("counters" in lets)
        assert passes(door, "rows", KINDS["rows"].make()) == ("scores" in lets)
        (release,) = door.bare([RELEASE])
        assert (release.metrics == RELEASE.metrics) == ("counters" in lets) and bool(release.metrics) == ("counters" in lets)
        assert release.weight == RELEASE.weight and release.update is RELEASE.update


def test_scores_that_ride_with_a_release_pass_where_scores_do() -> None:
    scored = replace(RELEASE, metrics=RELEASE.metrics | dict.fromkeys(riding.SUMS, 1.0))
    for lets in ((), ("counters",), ("scores",), BESIDE):
        (release,) = Door(lets).bare([scored])
        assert set(release.metrics) == {*(wire.METRICS if "counters" in lets else ()), *(riding.SUMS if "scores" in lets else ())}
        assert passes(Door(lets), "releases", wire.encode_releases([scored], SHARED)) == (set(lets) == set(BESIDE))


def test_how_many_are_within_an_adaptive_bound_passes_where_there_is_one() -> None:
    said = wire.encode_releases([Release(SHARED, 2.0, 2, {"unclipped": 1.0})], SHARED)
    for how, played in itertools.product(("adaptive", "gaussian", "local"), (True, False)):
        scenario = load("movielens", ["privacy=user", f"privacy.user.mechanism={how}"])
        assert passes(outgoing.door(scenario, played), "releases", said) == (how == "adaptive")
        assert not passes(replace(outgoing.door(scenario, played), lets=()), "releases", KINDS["releases"].make())


@pytest.mark.parametrize(
    ("settings", "simulated", "lets", "tells"),
    [
        (["privacy=off"], False, BESIDE, True),
        (["privacy=unclaimed"], False, BESIDE, True),
        (["privacy=example"], True, BESIDE, True),
        (["privacy=example"], False, (), False),
        (["privacy=user"], False, (), False),
        (["privacy=both", "privacy.waive=[scores]"], False, ("scores",), False),
        (["privacy=example", "privacy.waive=[counters,scores]"], False, BESIDE, False),
    ],
)
def test_a_deployed_node_under_a_guarantee_lets_out_what_the_scenario_waives(
    settings: list[str], simulated: bool, lets: tuple[str, ...], tells: bool
) -> None:
    found = outgoing.door(load("movielens", settings), simulated)
    assert (found.lets, found.tells) == (lets, tells)


def test_why_a_node_fails_stays_in_its_log_under_a_guarantee(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("ERROR", "flwr.homing"), pytest.raises(WithheldError) as told, Door().closed_to_errors():
        raise ValueError("column 'time' must hold numbers, got 'diabetes'")
    assert "diabetes" not in str(told.value) and "ValueError" in str(told.value) and "diabetes" in caplog.text
    with pytest.raises(ValueError, match="diabetes"), OPEN.closed_to_errors():
        raise ValueError("diabetes")


@pytest.mark.parametrize(
    ("settings", "node", "word"),
    [
        ([], {"epsilon": 8}, "privacy.guarantee must be 'example' on this node"),
        (["privacy=unclaimed"], {"epsilon": 8}, "not 'unclaimed'"),
        (["privacy=example", "privacy.example.epsilon=9"], {"epsilon": 8}, "privacy.example.epsilon must be at most 8"),
        (["privacy=example", "privacy.example.delta=1e-3"], {"epsilon": 8}, "privacy.example.delta must be at most 1e-05"),
        (["privacy=example", "privacy.waive=[scores]"], {"epsilon": 8, "waive": "counters"}, "must not name 'scores'"),
        (["privacy=example"], {"epsilon": "eight"}, "epsilon in the node config must be above 0, got 'eight'"),
        (["privacy=example"], {"epsilon": -1}, "above 0"),
    ],
)
def test_a_node_whose_config_bounds_epsilon_refuses_what_costs_more(settings: list[str], node: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        outgoing.agree(load("movielens", settings), node)
    outgoing.agree(load("movielens", ["privacy=example", "privacy.waive=[scores]"]), {"epsilon": 8.0, "waive": "scores, counters"})
    outgoing.agree(load("movielens", settings), {})


def test_every_message_of_a_node_is_made_at_the_door() -> None:
    made = {
        path.name
        for path in Path(outgoing.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Message"
    }
    assert made == {"outgoing.py"}

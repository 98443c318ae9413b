"""FLTrust: what a user is worth, and whom the server takes its direction from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import InputError
from configs.scenario import Scenario, build, scenario_hash, to_yaml
from server import aggregation, rounds
from server.flower_strategy import HomingStrategy
from server.rounds import invited
from strategies import aggregators, fit
from strategies.aggregators.fedit import fedit
from strategies.aggregators.fltrust import fltrust
from strategies.base import Release, Task
from strategies.tree import State, norm, subtract
from tests.strategies.given import applied, assert_close, release, shared

FEDIT = aggregators.build("fedit", {})
ROOT = {n: 0.5 * v for n, v in shared(3).items()}  # the server's own update


def root(update: State = ROOT, weight: float = 4.0) -> Release:
    return replace(release(FEDIT, update, weight), root=True)


def users(*updates: State) -> list[Release]:
    return [release(FEDIT, update, 1.0 + i) for i, update in enumerate(updates)]


def near(seed: int, share: float = 1.0) -> State:
    return {n: share * (v + shared(seed)[n]) for n, v in shared(3).items()}


def flat(state: State) -> torch.Tensor:
    return torch.cat([state[n].double().flatten() for n in sorted(state)])


@pytest.mark.parametrize("lr", [1.0, 0.3])
def test_it_is_algorithm_2_of_the_paper(lr: float) -> None:
    each = [near(20), near(21, 5.0), {n: -v for n, v in near(22).items()}, shared(99)]
    found = applied(fltrust(lr), [*users(*each), root()])[1]
    g_0 = flat(ROOT)
    trust = [max(0.0, float(torch.cosine_similarity(flat(x), g_0, dim=0))) for x in each]
    assert sum(t > 0.05 for t in trust) >= 2 and trust[2] == 0
    want = sum((t * g_0.norm() / flat(x).norm() * flat(x) for t, x in zip(trust, each, strict=True)), torch.zeros(())) / sum(trust)
    torch.testing.assert_close(flat(subtract(found, shared())), lr * want, atol=1e-5, rtol=1e-5)


def test_users_who_all_do_what_the_server_does_make_its_update() -> None:
    assert_close(applied(fltrust(), [*users(*[ROOT] * 5), root()])[1], applied(FEDIT, users(ROOT))[1], 1e-5)


def test_how_long_an_update_is_does_not_count_and_nobody_moves_further_than_the_server(size: float = 1e6) -> None:
    one, two = (applied(fltrust(), [*users(near(20), near(21, s)), root()])[1] for s in (1.0, size))
    assert_close(one, two, 1e-4)
    assert norm(subtract(one, shared())) <= norm(ROOT) * (1 + 1e-6)


@pytest.mark.parametrize("attack", [-1.0, -100.0, 0.0])
def test_any_number_of_users_who_turn_their_update_around_change_nothing(attack: float) -> None:
    honest = users(near(20), near(21))
    liars = users(*[{n: attack * v for n, v in near(30 + k).items()} for k in range(9)])
    assert_close(applied(fltrust(), [*honest, *liars, root()])[1], applied(fltrust(), [*honest, root()])[1], 1e-5)
    crowd = subtract(applied(aggregators.build("median", {}), [*honest, *liars])[1], shared())
    assert float(flat(crowd) @ flat(ROOT)) < 1e-6, "the test itself: where most lie, a middle does not go the server's way"


def test_an_attack_hidden_in_one_factor_counts_in_the_whole_update() -> None:
    """A factor that points the right way does not buy trust for another that is turned around and longer."""
    half = {n: v if ".lora_A." in n else -10 * v for n, v in ROOT.items()}
    found = applied(fltrust(), [*users(near(20), half), root()])[1]
    assert_close(found, applied(fltrust(), [*users(near(20)), root()])[1], 1e-5)


@pytest.mark.parametrize("given", [[], users(near(20)), [root()], [root(), Release({}, 0.0)],
                                   [*users(near(20)), Release({}, 0.0, root=True)],
                                   [*users({n: -v for n, v in ROOT.items()}), root()]])  # fmt: skip
def test_without_a_root_update_or_a_user_who_points_its_way_the_adapter_stays(given: list[Release]) -> None:
    found = fltrust().apply({}, shared(), iter(given))[1]
    assert all(torch.equal(v, shared()[n]) for n, v in found.items())


def test_a_root_update_of_zero_and_a_user_of_zeros_move_nothing() -> None:
    still = {n: torch.zeros_like(v) for n, v in shared().items()}
    for given in ([*users(near(20)), root(still)], [*users(still), root()]):
        found = fltrust().apply({}, shared(), iter(given))[1]
        assert all(torch.equal(v, shared()[n]) and bool(v.isfinite().all()) for n, v in found.items())


# ------------------------------------------------------------------ who the server's own users are
class Told:
    """A runtime of users whose updates are known; it notes who was asked for what."""

    def __init__(self, **updates: State) -> None:
        self.updates, self.asked = updates, []

    def users(self) -> Sequence[str]:
        return sorted(self.updates)

    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        self.asked.append((tuple(users), task.participations, task.everyone))  # type: ignore[attr-defined]
        return iter([Release({n: 2 * v for n, v in self.updates[u].items()}, 2.0) for u in users])

    def evaluate(self, *_: object) -> list[dict[str, Any]]:
        return []


SCENARIO = Scenario(rounds=2, aggregator="fltrust", root_users=("ann", "zoe"), evaluate_every=0, max_release_norm=1e6)


def test_the_round_loop_asks_them_by_themselves_every_round_and_no_other_update_is_marked(tmp_path: Path) -> None:
    two = {n: 3.0 * v for n, v in ROOT.items()}
    runtime = Told(ann=ROOT, zoe=two, bob=near(20), eve={n: -9 * v for n, v in near(21).items()})
    scenario = replace(SCENARIO, users_per_round=1, sampling="cyclic")
    end = rounds.run(scenario, runtime, fltrust(), shared(), tmp_path / "run")  # type: ignore[arg-type]
    asked = [said for said in runtime.asked if said[0] == ("ann", "zoe")]
    others = [said for said in runtime.asked if said not in asked]
    assert asked == [(("ann", "zoe"), 2, 2)] * 2
    assert sorted(said[0] for said in others) == [("bob",), ("eve",)] and {said[1:] for said in others} == {(1, 2)}
    honest = [*users(near(20)), root({n: 2 * v for n, v in ROOT.items()})]  # the mean of theirs
    assert_close(end.shared, applied(fltrust(), honest)[1], 1e-5)
    assert [row["releases"] for row in end.rows] == [1, 1]


def test_a_root_release_that_is_no_number_gives_nothing_and_ends_no_run(tmp_path: Path) -> None:
    broken = {n: v * math.nan for n, v in ROOT.items()}
    runtime = Told(ann=broken, bob=near(20))
    end = rounds.run(replace(SCENARIO, root_users=("ann",)), runtime, fltrust(), shared(), tmp_path / "run")  # type: ignore[arg-type]
    assert_close(end.shared, shared(), 0)
    assert [row["dropped"] for row in end.rows] == [{"not finite": 1}] * 2


def test_a_node_cannot_say_of_its_own_users_that_they_are_the_servers() -> None:
    from client import wire

    sent = wire.encode_releases([root()], shared())
    assert [r.root for r in wire.decode_releases(sent, shared())] == [False]


@pytest.mark.parametrize(
    ("root_users", "said"),
    [(("ann", "bbo"), "root_users: there is no user 'bbo' (did you mean 'bob'?)"), (("ann", "bob"), "root_users names every user")],
)
def test_they_must_be_there_and_not_alone(root_users: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError) as error:
        invited(replace(SCENARIO, root_users=root_users), ["ann", "bob"])
    assert said in str(error.value)
    assert invited(replace(SCENARIO, root_users=("ann",)), ["ann", "bob"]) == ["bob"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"root_users": ()}, "such as root_users=[ann]"), ({"aggregator": "fedit"}, "leave root_users=[]"),
     ({"scheme": "ifca"}, "one direction to trust")],
)  # fmt: skip
def test_a_scenario_without_them_or_with_them_and_no_use_is_refused(changes: dict[str, Any], said: str) -> None:
    assert not list(fit.problems(SCENARIO))
    with pytest.raises(InputError) as error:
        aggregation.build(replace(SCENARIO, **changes))
    assert said in str(error.value)


def test_a_strategy_of_one_exchange_has_no_place_for_them() -> None:
    with pytest.raises(InputError, match="root_users"):
        HomingStrategy(SCENARIO)


def test_a_scenario_without_them_has_the_digits_that_it_always_had() -> None:
    import yaml

    found = yaml.safe_load(to_yaml(Scenario()))
    assert scenario_hash(build(found)) == scenario_hash(Scenario()) != scenario_hash(Scenario(root_users=("ann",)))
    del found["root_users"]
    assert scenario_hash(build(found)) == scenario_hash(Scenario())


def test_fedit_takes_a_root_release_for_any_other() -> None:
    assert_close(applied(fedit(), [root(), *users(near(20))])[1], applied(fedit(), [replace(root(), root=False), *users(near(20))])[1])

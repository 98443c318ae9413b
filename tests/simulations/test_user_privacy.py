"""A run under guarantee U: noise on every round's sum, booked before it, within the budget of the whole run."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.node import Node
from configs.errors import InputError
from configs.scenario import load
from server import joint, rounds
from strategies.base import Release, Task
from strategies.privacy.accounting import SpentError, epsilon
from strategies.privacy.events import Event
from strategies.privacy.ledger import Ledger, Spend
from strategies.tree import norm
from tests.simulations.command import Said, call, timeless

U = ("privacy=user", "weights=uniform", "privacy.user.clip=0.01", "privacy.user.epsilon=3")
MECHANISMS = {
    "gaussian": (),
    "adaptive": ("privacy.user.mechanism=adaptive",),
    "banded": ("privacy.user.mechanism=banded", "sampling=cyclic"),
    "local": ("privacy.user.mechanism=local",),
    "poisson": ("sampling=poisson",),
    "both": ("privacy=both",),
}


@pytest.fixture(scope="module", params=MECHANISMS)
def guarded(request: pytest.FixtureRequest, world: Any) -> tuple[Path, Said, tuple[str, ...]]:
    """The tiny world's run under each mechanism."""
    folder = world.folder / "runs" / f"user-{request.param}"
    words = (*world.settings, *U, *MECHANISMS[request.param])
    return folder, call("run", "movielens", *words, "--out", folder), words


def test_a_run_spends_its_budget_and_no_more_and_says_so(guarded: tuple[Path, Said, tuple[str, ...]]) -> None:
    folder, said, words = guarded
    assert said.code == 0, said
    found = json.loads((folder / "summary.json").read_text())["epsilon"]
    assert found.keys() == ({"example", "user"} if "privacy=both" in words else {"user"})
    assert 1.0 < found["user"] <= 3.0  # less than all of it where nobody happens to take part as often as they might
    body = (folder / "report.html").read_text()
    assert "Privacy, user level" in body
    assert ("whole data of any one user, whoever looks, but for the server" in body) != ("privacy.user.mechanism=local" in words)


def test_a_run_that_is_repeated_is_the_same_and_costs_nothing_more(guarded: tuple[Path, Said, tuple[str, ...]], tmp_path: Path) -> None:
    folder, _, words = guarded
    again = tmp_path / "again"
    again.mkdir()
    (again / "joint.sqlite").write_bytes((folder / "joint.sqlite").read_bytes())
    with Ledger(again / "joint.sqlite") as ledger:
        before = ledger.histories()
    assert call("run", "movielens", *words, "--out", again).code == 0
    with Ledger(again / "joint.sqlite") as ledger:
        assert ledger.histories() == before
    assert timeless(again) == timeless(folder)


def test_a_node_lets_nothing_out_that_is_longer_than_the_bound(world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[Task, Release]] = []
    train = Node.train

    def watched(self: Node, task: Task, users: list[str]) -> Iterator[Release]:
        for release in train(self, task, users):
            seen.append((task, release))
            yield release

    monkeypatch.setattr(Node, "train", watched)
    words = ("privacy=user", "weights=uniform", "privacy.user.clip=1e-5", "privacy.user.mechanism=adaptive")
    assert call("run", "movielens", *world.settings, *words, "--out", tmp_path / "run").code == 0
    released = [(task, release) for task, release in seen if release.update]
    assert released
    assert all(release.weight == 1 and norm(release.update) <= task.bound for task, release in released)
    assert len({task.bound for task, _ in released}) > 1  # the bound moves
    assert {release.metrics["unclipped"] for _, release in released} == {0.0}


def test_a_round_is_booked_before_anyone_is_asked(world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Killed(BaseException):
        """Nothing catches it."""

    def killed(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(Node, "train", killed)
    with pytest.raises(Killed):
        call("run", "movielens", *world.settings, *U, "--out", tmp_path / "run")
    with Ledger(tmp_path / "run" / "joint.sqlite") as ledger:
        (run,) = ledger.runs()
        assert len(ledger.users()) == 4
        assert all(ledger.rounds(user, run) == 1 for user in ledger.users())


@pytest.mark.parametrize("words", [(), ("sampling=poisson",), ("sampling=cyclic", "privacy.user.mechanism=banded")])
def test_who_has_nothing_left_takes_no_part_and_a_round_that_nobody_can_pay_is_none(tmp_path: Path, words: tuple[str, ...]) -> None:
    scenario, everyone = load("movielens", [*U, *words, "rounds=3", "users_per_round=2"]), ["a", "b", "c"]
    with Ledger(tmp_path / "joint.sqlite") as ledger:
        found = joint.open_joint(scenario, everyone, ledger, "run", keyed=False)
        alone = replace(found, users=("a",), unpaid=set())
        while alone.book(1, ["a"]):
            pass  # the same round again, with fresh noise each time
        assert found.book(1, ["a", "b"]) == ["b"] and not found.unpaid
        while found.book(2, everyone):
            pass
        assert found.unpaid == {2}
        assert all(2.0 < epsilon(history, 1e-5) <= 3.0 for history in ledger.histories().values())


def test_every_users_release_is_booked_whichever_round_of_a_cycle_it_is_in(tmp_path: Path) -> None:
    scenario = load("movielens", [*U, "privacy.user.mechanism=banded", "sampling=cyclic", "rounds=6", "users_per_round=2"])
    with Ledger(tmp_path / "joint.sqlite") as ledger:
        found = joint.open_joint(scenario, [f"u{i}" for i in range(6)], ledger, "run")
        taken = Counter(user for number in range(1, 7) for user in found.sample(number))
        assert {user: sum(event.steps for event in history) for user, history in ledger.histories().items()} == taken
        assert set(taken.values()) == {2} and all(2.9 < epsilon(x, 1e-5) <= 3.0 for x in ledger.histories().values())


def test_who_has_spent_all_before_is_left_out_of_the_plan_and_the_noise_is_the_others(tmp_path: Path) -> None:
    for words in ((), ("sampling=poisson",), ("sampling=cyclic", "privacy.user.mechanism=banded")):
        scenario = load("movielens", [*U, *words, "rounds=4", "users_per_round=2"])
        with Ledger(tmp_path / f"{len(words)}{words[:1]}.sqlite") as ledger:
            fresh = joint.open_joint(scenario, ["b", "c", "d"], ledger, "run")
            ledger.spend([Spend("a", "earlier", 1, "joint", Event(0.1), False)])
            ledger.spend([Spend("e", "earlier", 1, "joint", Event(1.45), False)])  # leaves next to nothing: its noise would drown all
            found = joint.open_joint(scenario, list("abcde"), ledger, "run")
            assert found.users == ("b", "c", "d") and found.plan == fresh.plan
            assert found.sample(1) == fresh.sample(1)
            with pytest.raises(SpentError, match="no user has anything left"):
                joint.open_joint(scenario, ["a"], ledger, "run")


def test_a_runs_users_and_noise_are_planned_once_whoever_comes_or_goes(tmp_path: Path) -> None:
    scenario = load("movielens", [*U, "rounds=3"])
    with joint.kept(scenario, ["a", "b"], tmp_path, tmp_path, "run", False) as found:
        assert found
        found.sample(1)
    with Ledger(tmp_path / "joint.sqlite") as ledger:
        ledger.spend([Spend("a", "another", 1, "joint", Event(4.0), False)])
    with joint.kept(scenario, ["b", "c", "d"], tmp_path, tmp_path, "run", False) as again:
        assert again and (again.users, again.plan) == (found.users, found.plan)
        assert set(again.sample(2)) <= {"a", "b"}, "who is new waits for another run"
    (tmp_path / "plan.json").write_text('{"users": 3}')
    with pytest.raises(InputError, match=r"plan\.json cannot be resumed from"):
        joint.kept(scenario, [], tmp_path, tmp_path, "run", False).__enter__()


def test_noise_of_a_deployment_and_its_coins_cannot_be_drawn_again(tmp_path: Path) -> None:
    scenario = load("movielens", [*U, "sampling=poisson", "rounds=3", "users_per_round=32"])
    users = [f"u{i}" for i in range(64)]
    for keyed in (True, False):
        with Ledger(tmp_path / f"{keyed}.sqlite") as ledger:
            found = joint.open_joint(scenario, users, ledger, "run", keyed)
            shape = (4,)
            assert (found.draw(1)(shape).tolist() == found.draw(1)(shape).tolist()) == keyed  # type: ignore[arg-type]
            assert (found.sample(1) == rounds.sample(scenario, users, 1)) == keyed


def test_a_server_without_a_plan_of_the_noise_runs_nothing(tmp_path: Path, world: Any) -> None:
    scenario = load("movielens", [*world.settings, *U])
    with pytest.raises(RuntimeError, match="plan of the noise"):
        rounds.run(scenario, None, None, {}, tmp_path)  # type: ignore[arg-type]

"""A run under guarantee U: noise on every round's sum, booked before it, within the budget of the whole run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.node import Node
from configs.scenario import load
from server import joint, rounds
from strategies.base import Release, Task
from strategies.privacy.ledger import Ledger
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


def test_who_has_nothing_left_takes_no_part_and_where_all_pay_nobody_does(tmp_path: Path) -> None:
    for words, left in (((), ["b"]), (("sampling=poisson",), [])):
        scenario = load("movielens", [*U, *words, "rounds=3", "users_per_round=2"])
        with Ledger(tmp_path / f"{len(words)}.sqlite") as ledger:
            found = joint.open_joint(scenario, ["a", "b", "c"], ledger, "run", keyed=False)
            for _ in range(3):
                found.book(1, ["a"], ["a"])  # the same round again, with fresh noise each time
            assert found.book(1, ["a", "b"], ["a", "b", "c"]) == left


def test_noise_of_a_deployment_and_its_coins_cannot_be_drawn_again(tmp_path: Path) -> None:
    scenario = load("movielens", [*U, "sampling=poisson", "rounds=3", "users_per_round=32"])
    users = [f"u{i}" for i in range(64)]
    for keyed in (True, False):
        with Ledger(tmp_path / f"{keyed}.sqlite") as ledger:
            found = joint.open_joint(scenario, users, ledger, "run", keyed)
            shape = (4,)
            assert (found.draw(1)(shape).tolist() == found.draw(1)(shape).tolist()) == keyed  # type: ignore[arg-type]
            assert (found.sample(users, 1) == rounds.sample(scenario, users, 1)) == keyed


def test_a_server_without_a_plan_of_the_noise_runs_nothing(tmp_path: Path, world: Any) -> None:
    scenario = load("movielens", [*world.settings, *U])
    with pytest.raises(RuntimeError, match="plan of the noise"):
        rounds.run(scenario, None, None, {}, tmp_path)  # type: ignore[arg-type]

"""The round loop over a made-up runtime: what it asks, what it survives, and that a run that was killed anywhere ends the same."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import InputError
from configs.scenario import Scenario
from server import checkpoint, rounds
from server.checkpoint import Checkpoint
from strategies import aggregators
from strategies.base import Release, Task
from strategies.tree import State, generator

A, B = "base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight"
START: State = {A: torch.arange(6.0).reshape(2, 3), B: torch.zeros(4, 2)}
SCENARIO = Scenario(rounds=4, users_per_round=3, aggregator="fedavgm", evaluate_every=2, max_release_norm=1e3)


class Killed(BaseException):
    """What ends a process is no error that code might catch."""


@dataclass
class Fake:
    """A runtime without a model: a user's update depends on the seed, round, user and what was received."""

    spoil: Callable[[Task, str, Release], Release] = lambda _task, _user, release: release
    die_in: int = 0  # this round ends the process half-way
    asked: list[tuple[int, tuple[str, ...], tuple[str, ...]]] | None = None

    def users(self) -> Sequence[str]:
        return [f"user{i}" for i in range(5)]

    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        if self.asked is not None:
            self.asked.append((task.round, tuple(users), task.turns))
        for index, user in enumerate(users):
            if task.round == self.die_in and index == 1:
                raise Killed
            if "shared" not in task.turns:
                yield Release({}, 0.0, 1, {"tokens": 1.0, "steps": 1.0, "loss": 1.0, "examples": 1.0})
                continue
            draw = generator(task.round, user)
            weight = 1.0 + index
            update = {n: weight * (0.1 * torch.randn(v.shape, generator=draw) - 0.01 * v) for n, v in task.shared.items()}
            yield self.spoil(task, user, Release(update, weight, 1, {"tokens": 10.0, "steps": 1.0, "loss": 2.0, "examples": 4.0}))

    def evaluate(self, task: Task, part: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        assert part == "validation"
        loss = float(task.shared[B].square().sum())
        return [{"user": u, "seen": True, **{f"{c}.nll": loss for c in wanted}} for u in self.users()]


def run(folder: Path, runtime: Fake | None = None, scenario: Scenario = SCENARIO) -> Checkpoint:
    """Start or resume."""
    aggregator = aggregators.build(scenario.aggregator, scenario.aggregator_options)
    return rounds.run(scenario, runtime or Fake(), aggregator, START, folder)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a clock says."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same(folder: Path, ended: Checkpoint, other: Path, want: Checkpoint) -> None:
    """Bitwise the same run, in memory and on disk."""
    for mine, theirs in ((ended, want), (checkpoint.latest(folder), want), (checkpoint.latest(folder), checkpoint.latest(other))):
        assert mine is not None
        assert theirs is not None
        assert mine.round == theirs.round
        assert timeless(mine.rows) == timeless(theirs.rows)
        for a, b in ((mine.shared, theirs.shared), (mine.memory, theirs.memory)):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[n], b[n]) for n in a)
    written = [json.loads(line)["round"] for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert written == list(range(1, want.round + 1))


# ------------------------------------------------------------------ resume
@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """The run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


@pytest.mark.parametrize("round_", [1, 2, 4])
def test_a_run_killed_while_users_train_ends_as_the_uninterrupted_one(
    tmp_path: Path, whole: tuple[Path, Checkpoint], round_: int
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "cut", Fake(die_in=round_))
    found = checkpoint.latest(tmp_path / "cut")
    assert (found.round if found else 0) == round_ - 1
    assert_same(tmp_path / "cut", run(tmp_path / "cut"), *whole)


WRITES = 1 + 3 * SCENARIO.rounds  # the scenario; tensors, rows and the naming of both, each round


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, WRITES + 1))
def test_a_run_killed_around_any_write_ends_as_the_uninterrupted_one(
    tmp_path: Path, whole: tuple[Path, Checkpoint], monkeypatch: pytest.MonkeyPatch, at: int, after: bool
) -> None:
    count = 0

    def mortal(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: Any) -> None:
            nonlocal count
            count += 1
            if count == at and not after:
                raise Killed
            write(*args)
            if count == at:
                raise Killed

        return wrapped

    with monkeypatch.context() as patched:
        for name in ("write_state", "write_text"):
            patched.setattr(checkpoint, name, mortal(getattr(checkpoint, name)))
        with pytest.raises(Killed):
            run(tmp_path / "cut")
        assert count == at
    assert_same(tmp_path / "cut", run(tmp_path / "cut"), *whole)


@pytest.mark.parametrize("at", range(1, SCENARIO.rounds))
def test_a_run_killed_while_it_cleans_up_ends_as_the_uninterrupted_one(
    tmp_path: Path, whole: tuple[Path, Checkpoint], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    count = 0

    def unlink(_path: Path) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise Killed
        real(_path)

    real = Path.unlink
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed):
            run(tmp_path / "cut")
    assert_same(tmp_path / "cut", run(tmp_path / "cut"), *whole)
    assert len(list((tmp_path / "cut").glob("shared-*.safetensors"))) <= 2, "only the last round's leftover may stay"


def test_a_run_that_has_ended_is_not_run_again(tmp_path: Path) -> None:
    want = run(tmp_path)
    asked: list[tuple[int, tuple[str, ...], tuple[str, ...]]] = []
    assert_same(tmp_path, run(tmp_path, Fake(asked=asked)), tmp_path, want)
    assert asked == []


def test_a_run_kills_itself_nowhere_and_really_moves(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert float((ended.shared[B] - START[B]).abs().max()) > 0.05
    assert all(bool(v.any()) for v in ended.memory.values())


def test_a_folder_of_another_scenario_is_refused_and_left_alone(tmp_path: Path) -> None:
    want = run(tmp_path)
    with pytest.raises(InputError, match="another scenario"):
        run(tmp_path, scenario=replace(SCENARIO, seed=1))
    assert_same(tmp_path, run(tmp_path), tmp_path, want)
    run(tmp_path, scenario=replace(SCENARIO, name="renamed", engine=replace(SCENARIO.engine, tokens_per_pass=7)))


def test_a_damaged_checkpoint_is_said_in_one_sentence(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "checkpoint.json").write_text('{"round": 4')
    with pytest.raises(InputError, match="cannot be resumed from"):
        checkpoint.latest(tmp_path)


# ------------------------------------------------------------------ what a round asks
def test_sampling_is_keyed_by_seed_and_round_and_without_replacement() -> None:
    users = Fake().users()
    drawn = [rounds.sample(SCENARIO, users, n) for n in range(1, 5)]
    assert all(len(set(d)) == 3 and d == sorted(d) for d in drawn)
    assert drawn == [rounds.sample(SCENARIO, users, n) for n in range(1, 5)]
    assert len({tuple(d) for d in drawn}) > 1
    assert drawn != [rounds.sample(replace(SCENARIO, seed=1), users, n) for n in range(1, 5)]
    assert rounds.sample(replace(SCENARIO, users_per_round=0), users, 1) == users
    assert rounds.sample(replace(SCENARIO, users_per_round=9), users, 1) == users


def test_the_private_adapter_joins_in_when_told_and_everyone_personalizes_at_the_end(tmp_path: Path) -> None:
    asked: list[tuple[int, tuple[str, ...], tuple[str, ...]]] = []
    ended = run(tmp_path, Fake(asked=asked), replace(SCENARIO, private_from=2, personalize=3))
    assert [(n, turns) for n, _, turns in asked] == [
        (1, ("shared",)),
        (2, ("shared",)),
        (3, ("shared", "private")),
        (4, ("shared", "private")),
        (5, ("final",)),
    ]
    assert [len(users) for _, users, _ in asked] == [3, 3, 3, 3, 5]
    before = run(tmp_path / "without", scenario=replace(SCENARIO, private_from=2))
    assert all(torch.equal(ended.shared[n], before.shared[n]) for n in START), "the last, private round leaves the shared adapter"


def test_a_task_says_how_many_are_asked() -> None:
    for number in (1, SCENARIO.rounds + 1):
        for asked, users, cohort in ((3, 5, 3), (0, 5, 5), (9, 5, 5)):
            assert rounds.plan(replace(SCENARIO, users_per_round=asked), START, number, users).cohort == cohort


def test_rows_count_what_went_over_the_wire(tmp_path: Path) -> None:
    rows = run(tmp_path).rows
    size = 4 * (6 + 8)
    assert [(r["users"], r["releases"], r["bytes_up"], r["bytes_down"], r["tokens"], r["steps"]) for r in rows] == [
        (3, 3, 3 * size, 3 * size, 30, 3)
    ] * 4
    assert [r["train_loss"] for r in rows] == [0.5] * 4
    assert ["validation" in r for r in rows] == [False, True, False, True]
    assert rows[0]["update_norm"] > 0


def test_validation_is_scored_every_so_often_and_after_the_last_round() -> None:
    scenario = replace(SCENARIO, rounds=6, evaluate_every=4, personalize=1)
    assert [n for n in range(1, 8) if rounds.followed(scenario, n)] == [4, 7]
    assert rounds.followed(replace(scenario, evaluate_every=0), 7) == ()
    assert "shared" in rounds.followed(scenario, 4)
    assert "shared" not in rounds.followed(replace(scenario, scheme="fedrep"), 4)


def test_scores_that_ride_along_are_asked_for_with_the_next_order_and_after_the_last_round_by_themselves(tmp_path: Path) -> None:
    scenario = replace(SCENARIO, rounds=6, evaluate_every=2, personalize=1, evaluate_along=True)
    every = range(1, 8)
    assert [n for n in every if rounds.along(scenario, n)] == [3, 5, 7] and [n for n in every if rounds.apart(scenario, n)] == [7]
    assert [bool(rounds.plan(scenario, START, n, 5).rows) for n in every] == [n in (3, 5, 7) for n in every]
    usual = replace(scenario, evaluate_along=False)
    assert not any(rounds.along(usual, n) for n in every) and [n for n in every if rounds.apart(usual, n)] == [2, 4, 6, 7]
    sums = {"shared.nll": 3.0, "shared.nll.users": 4.0}  # of each of three or five users, who are added up
    rows = run(tmp_path, Fake(lambda task, _u, r: replace(r, metrics={**r.metrics, **(sums if task.rows else {})})), scenario).rows
    ridden = {3, 5}  # nobody of these users sends numbers after the last round
    assert [row.get("validation_before") for row in rows] == [{"shared": {"nll": 0.75}} if n in ridden else None for n in every]
    assert ["validation" in row for row in rows] == [n == 7 for n in every]


# ------------------------------------------------------------------ bad releases
def changed(release: Release, name: str, value: torch.Tensor) -> Release:
    """With one tensor replaced or added."""
    return replace(release, update={**release.update, name: value})


SPOILED: dict[str, Callable[[Release], Release]] = {
    "nan": lambda r: changed(r, A, torch.full((2, 3), torch.nan)),
    "infinite": lambda r: changed(r, B, torch.full((4, 2), torch.inf)),
    "another name": lambda r: changed(r, "private/secret", torch.zeros(1)),
    "another shape": lambda r: changed(r, A, torch.zeros(3, 2)),
    "another dtype": lambda r: changed(r, A, torch.zeros(2, 3, dtype=torch.float64)),
    "an absurd norm": lambda r: changed(r, A, torch.full((2, 3), 1e9)),
    "no weight": lambda r: replace(r, weight=0.0),
    "a negative weight": lambda r: replace(r, weight=-1.0),
    "a weight that is no number": lambda r: replace(r, weight=float("nan")),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_bad_release_is_as_if_that_user_had_been_silent(tmp_path: Path, spoil: Callable[[Release], Release]) -> None:
    silent = run(tmp_path / "silent", Fake(lambda _t, u, r: Release({}, 0.0, 1, {}) if u == "user2" else r))
    bad = run(tmp_path / "bad", Fake(lambda _t, u, r: spoil(r) if u == "user2" else r))
    assert bad.round == SCENARIO.rounds
    assert all(torch.equal(bad.shared[n], silent.shared[n]) for n in START)
    took_part = sum("user2" in rounds.sample(SCENARIO, Fake().users(), n) for n in range(1, 5))
    assert took_part > 0
    assert sum(sum(r["dropped"].values()) for r in bad.rows) == took_part
    assert sum(r["releases"] for r in bad.rows) == 3 * 4 - took_part


def test_a_run_in_which_every_release_is_bad_ends_with_the_adapter_it_began_with(tmp_path: Path) -> None:
    ended = run(tmp_path, Fake(lambda _t, _u, r: SPOILED["nan"](r)))
    assert ended.round == SCENARIO.rounds
    assert all(torch.equal(ended.shared[n], v) for n, v in START.items())
    assert [r["dropped"] for r in ended.rows] == [{"not finite": 3}] * 4


def test_a_folder_belongs_to_one_process_at_a_time_and_is_cleared_of_what_a_killed_one_was_writing(tmp_path: Path) -> None:
    half_written = tmp_path / "run" / "private" / "user1" / ".000003.safetensors.4711.tmp"
    half_written.parent.mkdir(parents=True)
    half_written.touch()
    with checkpoint.held(tmp_path / "run"):
        assert not half_written.exists()
        with pytest.raises(InputError, match="in use by another process"), checkpoint.held(tmp_path / "run"):
            pass
    with checkpoint.held(tmp_path / "run"):
        pass


def test_averages_are_over_users_that_have_the_number() -> None:
    found = rounds.averages([{"user": "a", "x.nll": 1.0, "y.auc": None}, {"user": "b", "x.nll": 3.0, "y.auc": 0.5}])
    assert found == {"x": {"nll": 2.0}, "y": {"auc": 0.5}}

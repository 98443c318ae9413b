"""Under `privacy.secure` the round loop sees one sum a round, the same however users are spread, whoever drops out, or nothing."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from client import masking, secure
from client.masking import MaskingError, Terms
from client.secure import Call, Form
from configs.errors import InputError
from configs.scenario import Masking, Privacy, Scenario, UserLevel, load
from server import rounds
from server.joint import open_joint
from server.secure import SecureRuntime, dealt, released
from server.unmasking import STEPS, collect
from strategies import aggregators
from strategies.base import Release, Task
from strategies.privacy import discrete, joint, rules
from strategies.privacy.joint import Cohorts, Plan
from strategies.privacy.ledger import Ledger
from strategies.tree import State, generator, norm, subtract

A, B = "base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight"
START: State = {A: torch.randn(8, 30, generator=generator("a")), B: torch.zeros(20, 8)}
USERS = [f"user{i:02d}" for i in range(11)]
SECURE = Privacy(secure=True, masking=Masking(nodes=4, threshold=0.7))
SCENARIO = Scenario(rounds=3, weights="uniform", max_release_norm=2.0, evaluate_every=0, privacy=SECURE)
FEDIT = aggregators.build("fedit", {})


@dataclass
class Fake:
    """A runtime without a model: a user's update depends on the round, the user and what was received."""

    spoil: Callable[[str, Release], Release] = lambda _user, release: release

    def users(self) -> Sequence[str]:
        return USERS

    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        for user in users:
            draw = generator(task.round, user)
            update = {n: 0.05 * torch.randn(v.shape, generator=draw) - 0.01 * v for n, v in task.shared.items()}
            number = float(torch.rand((), generator=draw))
            metrics = {"tokens": 100.0 + USERS.index(user), "steps": 3.0, "examples": 7.0, "loss": number, "secret": 1.0}
            yield self.spoil(
                user, Release(update if "shared" in task.turns else {}, 1.0 if "shared" in task.turns else 0.0, 1, metrics)
            )

    def evaluate(self, task: Task, part: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        return [{"user": f"{task.round} {part} {wanted}"}]


def with_masking(scenario: Scenario = SCENARIO, **changes: Any) -> Scenario:
    return replace(scenario, privacy=replace(scenario.privacy, masking=replace(scenario.privacy.masking, **changes)))


def one(runtime: SecureRuntime, users: Sequence[str] = USERS, round_: int = 1, turns: tuple[str, ...] = ("shared",)) -> Release:
    """The one release of a round."""
    (found,) = runtime.train(Task(round_, START, turns), users)
    return found


def clear(users: Sequence[str], round_: int = 1) -> State:
    """What the users' updates add up to."""
    found = [release.update for release in Fake().train(Task(round_, START, ("shared",)), users)]
    return {name: torch.stack([update[name] for update in found]).double().sum(0) for name in START}


def apart(found: State, want: State) -> float:
    """The length of the difference over the length of what was wanted."""
    return norm(subtract({n: v.double() for n, v in found.items()}, want)) / norm(want)


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------- the sum
def test_a_round_is_one_release_which_is_the_sum_of_the_users_and_of_their_counts() -> None:
    found = one(SecureRuntime(Fake(), SCENARIO))
    assert apart(found.update, clear(USERS)) < 1e-4
    assert {v.dtype for v in found.update.values()} == {torch.float32}
    assert (found.weight, found.users) == (11.0, 11)
    assert found.metrics["tokens"] == 1155.0 and found.metrics["steps"] == 33.0
    assert found.metrics["loss"] == pytest.approx(sum(r.metrics["loss"] for r in Fake().train(Task(1, START), USERS)), abs=1e-4)
    assert "secret" not in found.metrics


@pytest.mark.parametrize("nodes", [2, 3, 7, 11, 40])
def test_the_sum_is_the_same_to_the_last_bit_however_users_are_spread_over_nodes(nodes: int) -> None:
    first, other = one(SecureRuntime(Fake(), SCENARIO)), one(SecureRuntime(Fake(), with_masking(nodes=nodes)))
    assert equal(first.update, other.update)
    assert (first.weight, first.metrics) == (other.weight, other.metrics)


def test_a_run_of_rounds_ends_close_to_the_one_without_masks(tmp_path: Path) -> None:
    ends = {}
    for name, runtime in (("plain", Fake()), ("secure", SecureRuntime(Fake(), SCENARIO))):
        scenario = replace(SCENARIO, users_per_round=7, privacy=replace(SECURE, secure=name == "secure"))
        ends[name] = rounds.run(scenario, runtime, FEDIT, START, tmp_path / name)
        assert [row["releases"] for row in ends[name].rows] == [7, 7, 7]
        assert not any(row["dropped"] for row in ends[name].rows)
    moved = subtract(ends["plain"].shared, START)
    assert apart(subtract(ends["secure"].shared, START), moved) < 1e-4
    assert [row["tokens"] for row in ends["plain"].rows] == [row["tokens"] for row in ends["secure"].rows]


def test_a_larger_update_is_scaled_down_to_the_bound_and_the_sum_is_admitted(tmp_path: Path) -> None:
    scenario = replace(SCENARIO, max_release_norm=1e-2, rounds=1)
    alike = Fake(lambda _user, r: replace(r, update={n: torch.full_like(v, 0.5) for n, v in r.update.items()}))
    end = rounds.run(scenario, SecureRuntime(alike, scenario), FEDIT, START, tmp_path)
    assert end.rows[0]["releases"] == 11 and not end.rows[0]["dropped"]
    assert end.rows[0]["update_norm"] == pytest.approx(1e-2, rel=1e-4)


@pytest.mark.parametrize("how", ["nan", "shape", "names", "sum"])
def test_a_release_that_is_not_in_order_is_not_in_the_sum(how: str) -> None:
    def spoil(user: str, release: Release) -> Release:
        if user != USERS[4]:
            return release
        update = {
            "nan": {n: v * math.nan for n, v in release.update.items()},
            "shape": {n: v[:1] for n, v in release.update.items()},
            "names": {A: release.update[A]},
            "sum": release.update,
        }[how]
        return replace(release, update=update, users=2 if how == "sum" else 1)

    found = one(SecureRuntime(Fake(spoil), SCENARIO))
    assert found.users == 10
    assert apart(found.update, clear([*USERS[:4], *USERS[5:]])) < 1e-4


def test_where_nothing_is_released_the_sum_holds_the_counts() -> None:
    found = one(SecureRuntime(Fake(), SCENARIO), turns=("private",))
    assert (found.update, found.weight, found.users) == ({}, 0.0, 11)
    assert found.metrics["tokens"] == 1155.0


def test_only_the_aggregators_factors_are_in_the_sum() -> None:
    ffa = replace(SCENARIO, aggregator="ffa")
    how = secure.form(ffa, aggregators.build("ffa", {}), Task(1, START, ("shared",)), Call("s", 11, 4))
    assert set(how.like) == {B} and how.terms.size == START[B].numel() + secure.LIMBS * len(secure.COUNTED)


def test_rounding_that_is_too_coarse_for_the_bound_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "flwr"):
        one(SecureRuntime(Fake(), replace(SCENARIO, max_release_norm=2e5)))
    assert "the bound 200000 is too large" in caplog.text
    caplog.clear()
    one(SecureRuntime(Fake(), SCENARIO))
    assert not caplog.text


@pytest.mark.parametrize("count", [0.0, 0.1, 1.0, 2.0**20, 2.0**39 + 0.5])
def test_counts_of_two_thousand_nodes_come_back_as_they_are(count: float) -> None:
    how = secure.form(SCENARIO, FEDIT, Task(1, {}, ("private",)), Call("s", 2000, 2000))
    release = Release({}, 0.0, 1, {"tokens": count})
    part_M = secure.vector(SCENARIO, Task(1, {}, ("private",)), how, [release], 1)
    assert int(part_M.max()) < 2**20
    found = secure.read(part_M * 2000, how, 0)
    assert found is not None
    assert found.users == 2000 and found.metrics["tokens"] / 2000 == pytest.approx(count, abs=2**-20)


# ---------------------------------------------------------------------- who drops out
@pytest.mark.parametrize("step", STEPS)
def test_a_node_that_drops_out_at_any_step_costs_its_users_and_no_round(step: str) -> None:
    found = one(SecureRuntime(Fake(), SCENARIO, None, {"1": step}))
    there = USERS if step == "reveal" else [user for user in USERS if user not in USERS[1::4]]
    assert found.users == len(there)
    assert apart(found.update, clear(there)) < 1e-4


@pytest.mark.parametrize("step", STEPS)
def test_with_fewer_nodes_than_the_threshold_a_round_releases_nothing_and_the_run_goes_on(step: str, tmp_path: Path) -> None:
    runtime = SecureRuntime(Fake(), SCENARIO, None, {"1": step, "2": step})
    end = rounds.run(replace(SCENARIO, rounds=2), runtime, FEDIT, START, tmp_path)
    assert [row["releases"] for row in end.rows] == [0, 0] and equal(end.shared, START)
    assert sum(runtime.failed.values()) == 2


def test_a_round_with_one_node_is_no_sum_and_nobody_trains_for_it(caplog: pytest.LogCaptureFixture) -> None:
    runtime = SecureRuntime(Fake(lambda *_: pytest.fail("trained")), SCENARIO)
    with caplog.at_level("WARNING", "flwr"):
        assert not list(runtime.train(Task(1, START), USERS[::4]))
    assert "needs two nodes" in caplog.text and runtime.failed.total() == 1


def test_a_share_that_was_forged_ends_the_round_and_not_the_run() -> None:
    def summing(_call: Call, how: Form) -> tuple[Tensor, tuple[str, ...]]:
        raise MaskingError(f"shares of {how.terms.session[:0]}n give another seed")

    failed: Counter[str] = Counter()
    assert not list(released(SCENARIO, Task(1, START), {"n": ["a"], "m": ["b"]}, None, summing, failed))
    assert failed == {"shares of n give another seed": 1}


def test_users_are_dealt_out_as_flowers_partitions_do() -> None:
    assert dealt(USERS, ["user09", "user01", "user05", "user02"], 4) == {"1": ["user01", "user05", "user09"], "2": ["user02"]}


# ---------------------------------------------------------------------- what a node keeps
def test_a_nodes_part_lies_on_disk_before_it_answers_and_no_step_can_be_taken_twice(tmp_path: Path) -> None:
    names, terms = ("a", "b", "c"), Terms("s", 5, 2)
    vectors = {name: torch.arange(5) * (index + 1) for index, name in enumerate(names)}
    kept: list[tuple[str, bytes]] = []

    def exchange(step: str, sent: Any) -> dict[str, bytes]:
        kept.extend((me, message) for me, message in sent.items() if me == "b")
        found = {me: secure.answer(tmp_path / me, step, message) for me, message in sent.items()}
        with pytest.raises(MaskingError, match="comes when"):
            secure.answer(tmp_path / "b", step, sent["b"])
        return found

    total_D, there = collect(terms, {me: secure.begin(tmp_path / me, terms, me, vectors[me]) for me in names}, exchange)
    assert total_D.tolist() == [0, 6, 12, 18, 24] and there == names
    left = {path.name: path.read_text() for path in (tmp_path / "b").iterdir()}
    state = masking.load(left["state.json"].encode())
    assert set(left) == {"state.json"} and (state.private, state.seed, state.shares) == (("", ""), "", {})
    assert (tmp_path / "b").stat().st_mode & 0o077 == 0
    with pytest.raises(MaskingError, match="no step 'sum'"):
        secure.answer(tmp_path / "b", "sum", b"")
    with pytest.raises(MaskingError, match="no secure sum is open"):
        secure.answer(tmp_path / "z", "share", b"")


# ---------------------------------------------------------------------- guarantee U
JOINT = replace(SCENARIO, privacy=replace(SECURE, guarantee="user", user=UserLevel(epsilon=2.0, clip=0.5)))


def planned(noise: float) -> Plan:
    return Plan(JOINT, Cohorts(20, 3, 8, 3, 1), noise)


def noisy(nodes: int, users: int, noise: float, **changes: Any) -> tuple[np.ndarray, Form]:
    """A round of users who send zeros, over nodes; in units of the bound on the grid."""
    scenario = with_masking(JOINT, nodes=nodes, **changes)
    everyone = [f"u{i:03d}" for i in range(users)]
    fake = Fake(lambda _user, r: replace(r, update={n: torch.zeros_like(v) for n, v in r.update.items()}))
    fake.users = lambda: everyone  # type: ignore[method-assign]
    fake.train = lambda task, names: (Release({n: torch.zeros_like(v) for n, v in task.shared.items()}, 1.0) for _ in names)  # type: ignore[method-assign]
    (found,) = SecureRuntime(fake, scenario, planned(noise)).train(Task(1, START, ("shared",)), everyone)
    assert (found.weight, found.users, found.metrics) == (8.0, users, {})
    how = secure.form(scenario, FEDIT, Task(1, START, ("shared",)), Call("s", users, nodes, noise))
    unit = math.sqrt(how.grid.reach) * how.grid.step
    return np.concatenate([v.double().flatten().numpy() for v in found.update.values()]) / unit, how


def test_under_guarantee_u_the_nodes_noise_is_at_least_what_is_booked_for_it() -> None:
    found, how = noisy(nodes=5, users=20, noise=1.5, threshold=1.0)
    assert stats.kstest(found, stats.norm(scale=1.5).cdf).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(found, stats.norm(scale=1.5 * wrong).cdf).pvalue < 1e-4
    assert discrete.event(how.grid).noise >= 1.5


def test_noise_of_nodes_that_may_drop_out_or_collude_is_not_counted_on() -> None:
    for changes, counted in (({"threshold": 0.6}, 6), ({"threshold": 0.8, "colluding": 0.5}, 3)):
        found, how = noisy(nodes=10, users=20, noise=1.0, **changes)
        assert how.grid.honest == counted
        assert how.terms.threshold == counted + math.ceil(changes.get("colluding", 0.0) * 10)
        assert found.std() == pytest.approx(math.sqrt(10 / counted), rel=0.15)


def test_a_run_under_guarantee_u_adds_noise_once_and_spends_what_was_planned(tmp_path: Path) -> None:
    plan = joint.plan(JOINT, Cohorts(11, 3, 11, 3, 1))
    assert joint.event(plan) == discrete.Event(plan.noise, kind="concentrated")
    assert joint.payers(plan, USERS[:3], USERS) == USERS[:3]
    with Ledger(tmp_path / "joint.sqlite") as ledger:
        paying = open_joint(JOINT, USERS, ledger, "run")
        assert paying.plan == plan
        end = rounds.run(replace(JOINT, rounds=1), SecureRuntime(Fake(), JOINT, plan), FEDIT, START, tmp_path / "run", joint=paying)
        assert set(ledger.histories().values()) == {(joint.event(plan),)}
    size = sum(v.numel() for v in START.values())
    assert end.rows[0]["update_norm"] == pytest.approx(math.sqrt(4 / 3) * plan.noise * 0.5 / 11 * math.sqrt(size), rel=0.2)
    assert (end.rows[0]["tokens"], end.rows[0]["train_loss"]) == (0, None)


def test_a_node_sends_no_un_noised_update_under_guarantee_u_and_no_noise_without_it() -> None:
    for scenario, noise in ((JOINT, 0.0), (SCENARIO, 1.0), (JOINT, math.nan), (JOINT, math.inf)):
        with pytest.raises(InputError, match="noise of a secure sum"):
            secure.form(scenario, FEDIT, Task(1, START, ("shared",)), Call("s", 11, 4, noise))


@pytest.mark.parametrize(("users", "nodes"), [(11, 1), (3, 4), (11, 0)])
def test_a_node_takes_part_in_no_sum_that_hides_nothing(users: int, nodes: int) -> None:
    with pytest.raises(InputError, match="needs"):
        secure.form(SCENARIO, FEDIT, Task(1, START), Call("s", users, nodes))


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (["weights=examples"], "weights must be 'uniform'"),
        (["max_release_norm=1e4"], "sized to"),
        (["aggregator=flower.FedAvg"], "single users' updates"),
        (["scheme=local_only"], "releases nothing"),
        (["privacy=user", "privacy.user.mechanism=adaptive"], "only 'gaussian'"),
        (["privacy=user", "privacy.user.mechanism=local"], "only 'gaussian'"),
        (["privacy=user", "privacy.user.mechanism=banded"], "only 'gaussian'"),
    ],
)
def test_what_no_secure_sum_can_do_is_one_sentence(settings: list[str], word: str) -> None:
    base = ["privacy.secure=true", "weights=uniform", "max_release_norm=1"]
    assert list(rules.problems(load("movielens", base))) == []
    assert [s for s in rules.problems(load("movielens", [*base, *settings])) if word in s]


@pytest.mark.parametrize("change", ["nodes=1", "threshold=0.5", "threshold=1.1", "colluding=0.7", "neighbours=-1", "nodes=3000"])
def test_masking_that_cannot_hold_is_refused_by_name(change: str) -> None:
    with pytest.raises(InputError, match=f"masking.{change.partition('=')[0]} must be"):
        load("movielens", [f"privacy.masking.{change}"])

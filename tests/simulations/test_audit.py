"""An audit's bound lies below the truth, near it where it can, and above the claim of a mechanism that is broken."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from client.base import Base
from client.data.types import Encoded
from client.flat import Flat
from client.objective import row_losses
from client.purse import Purse
from client.tower import Tower
from configs.errors import InputError
from configs.scenario import Engine, Scenario, load
from server import rounds, sampling
from server.joint import cohorts
from simulations.audit import canary, cross_user, example, joint, suite
from simulations.audit.bound import Floats, bound, choices, most, p_value
from simulations.audit.canary import Result
from simulations.audit.nodes import opened
from simulations.training import World
from strategies.base import Task
from strategies.privacy import user_level
from strategies.privacy.gaussian import epsilon_for
from strategies.privacy.joint import Plan, plan
from strategies.privacy.noise import Noise
from strategies.tree import State, norm
from tests.simulations.command import call

CYCLIC = ("sampling=cyclic", "users_per_round=256", "rounds=3")
AUDITS = ("joint", "example", "cross_user")


def gaussian(mu: float, canaries: int, seed: int) -> tuple[Floats, Any]:
    """Scores of canaries that noise 1 / mu hides, and their coins."""
    draw = np.random.default_rng(seed)
    coin_M = draw.random(canaries) < 0.5
    return mu * coin_M + draw.standard_normal(canaries), coin_M


def response(epsilon: float, delta: float, canaries: int, seed: int) -> tuple[Floats, Any]:
    """Randomized response, which loses all that (epsilon, delta) allows: with probability delta it tells the coin."""
    draw = np.random.default_rng(seed)
    coin_M = draw.random(canaries) < 0.5
    told, lied = draw.random(canaries) < delta, draw.random(canaries) > 1 / (1 + math.exp(-epsilon))
    sign_M = np.where(coin_M ^ (lied & ~told), 1.0, -1.0)
    return sign_M * np.where(told, 3.0, 1 + draw.random(canaries)), coin_M


# ---------------------------------------------------------------------- statistics
@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_the_bound_is_above_the_epsilon_of_a_gaussian_in_at_most_one_audit_of_twenty(mu: float) -> None:
    true = float(epsilon_for(np.array([mu]), 1e-5)[0])
    above = sum(bound(*gaussian(mu, 200, seed), 1e-5) > true for seed in range(100))
    assert above <= binom.ppf(0.999, 100, 0.05)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (2.0, 1e-5), (2.0, 1e-4)])
def test_nor_above_that_of_a_mechanism_that_loses_all_it_may(epsilon: float, delta: float) -> None:
    found = [bound(*response(epsilon, delta, 200, seed), delta) for seed in range(100)]
    assert sum(x > epsilon for x in found) <= binom.ppf(0.999, 100, 0.05)
    assert sum(x > 0.8 * epsilon for x in found) > 0  # and it is no trivial bound


def test_with_many_canaries_the_bound_comes_near_the_truth() -> None:
    assert 1.9 < bound(*response(2.0, 1e-6, 20_000, 0), 1e-6) <= 2.0
    few, many = (bound(*gaussian(1.0, count, 0), 1e-6) for count in (500, 20_000))
    assert few < many and many > 2.0  # of 4.9 at delta 1e-6, which no 20,000 guesses can see


def test_where_every_guess_is_right_the_bound_is_the_most_that_so_many_canaries_show() -> None:
    coin_M = np.arange(256) % 2 == 0
    assert bound(coin_M.astype(float), coin_M, 1e-5) == pytest.approx(most(256, 1e-5))
    error = 0.05 / len(choices(256))
    assert most(256, 0.0) == pytest.approx(-math.log(error ** (-1 / 256) - 1), abs=1e-6)
    assert bound(coin_M.astype(float), ~coin_M, 1e-5) == 0 and most(10, 1e-5) == 0


def test_a_delta_makes_guesses_count_for_less() -> None:
    values = [p_value(1.0, 200, 100, 85, delta) for delta in (0.0, 1e-5, 1e-3)]
    assert values == sorted(values) and values[0] < values[2]
    assert values[0] == pytest.approx(binom.sf(84, 100, 1 / (1 + math.exp(-1))))
    rising = [p_value(x / 10, 200, 100, 85, 1e-3) for x in range(40)]
    assert rising == sorted(rising)


# ---------------------------------------------------------------------- canaries
@pytest.mark.parametrize("labels", [(), (4, 5)])
def test_an_example_that_is_silent_loses_nothing_beside_others_and_alone(base: Base, labels: tuple[int, ...]) -> None:
    loud = Encoded(torch.arange(3, 12), 9, 1, 0) if labels else Encoded(torch.arange(3, 12), 1, -1, 0)
    tower = Tower(base, (), Engine())
    for rows in ([loud, canary.silent(loud)], [canary.silent(loud)]):
        losses_N = row_losses(base, tower(rows, []), len(rows), labels)
        assert losses_N.shape == (len(rows),)
        assert float(losses_N[-1]) == 0.0 and (len(rows) == 1 or float(losses_N[0]) > 0.1)


# ---------------------------------------------------------------------- audits
@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """What is audited, on the tiny world."""
    return load("audit", ["engine.cache=memory", "engine.device=cpu"])


@pytest.fixture(scope="module")
def world() -> World:
    """A random model and made-up users."""
    return suite.tiny()


def test_the_command_writes_bounds_that_the_claims_hold_and_that_no_noise_does_not(tmp_path: Path) -> None:
    said = call("audit", "--quick", "engine.device=cpu", "--out", tmp_path / "audit.json")
    assert (said.code, said.err) == (0, "")
    found = json.loads((tmp_path / "audit.json").read_text())
    assert tuple(found) == AUDITS
    for name, x in found.items():
        assert set(x) == {"claimed", "bound", "bound_without_noise", "confidence", "canaries"}
        assert x["bound"] <= x["claimed"] < x["bound_without_noise"]
        assert 1.99 < x["claimed"] <= 2.0 and x["confidence"] == 0.95 and x["canaries"] >= 64
        assert name in said.out and f"{x['bound_without_noise']:.2f}" in said.out
    assert found["joint"]["bound"] > 0.3 and found["example"]["bound"] > 0.1  # attacks that find something where noise hides it


def quieter(factor: float, where: Callable[..., bool] = lambda *_: True) -> Callable[..., Noise]:
    """What a purse draws, with the noise of some steps too small."""
    draw = Purse.draw

    def wrong(self: Purse, *key: object) -> Noise:
        noise = draw(self, *key)
        return (lambda shape: noise(shape) * factor) if key[-1] == "noise" and where(*key) else noise

    return wrong


def unclipped(self: Flat, loss: Any, leaves: State, _clip: float) -> None:
    """`accumulate_clipped` that does not clip."""
    clipped(self, loss, leaves, 1e9)


clipped = Flat.accumulate_clipped


@pytest.mark.parametrize("fault", ["noise / 4", "no clip"])
def test_a_broken_training_fails_the_audit_of_examples(
    scenario: Scenario, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "no clip":
        world = replace(world, dataset=replace(world.dataset, users=dict(list(world.dataset.users.items())[:256])))
        monkeypatch.setattr(Flat, "accumulate_clipped", unclipped)
    else:
        monkeypatch.setattr(Purse, "draw", quieter(1 / 4))
    level = replace(scenario.privacy.example, private_clip=1e-3)  # a twentieth of the canary's gradient
    found = example.audit(replace(scenario, rounds=1, privacy=replace(scenario.privacy, example=level)), world, tmp_path)
    assert found.claimed <= 2.0 < found.bound
    assert any(said.startswith("example: epsilon is at least") for said in suite.failures({"example": found}))


@pytest.mark.parametrize("fault", ["noise / 4", "no clip"])
def test_a_broken_sum_fails_the_audit_of_users(
    scenario: Scenario, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    noised = user_level.noised
    if fault == "no clip":
        monkeypatch.setattr(user_level, "clip", lambda update, _bound: (update, norm(update)))  # the server's, and the node's
        monkeypatch.setattr(rounds, "SLACK", 1e9)  # of what the server lets in
    else:
        monkeypatch.setattr(user_level, "noised", lambda total, normal, std, *rest: noised(total, normal, std / 4, *rest))
    found = joint.audit(scenario, world, tmp_path, 1024)
    assert found.claimed <= 2.0 < found.bound


def test_an_example_that_travels_through_an_unnoised_shared_adapter_fails_the_audit_across_users(
    scenario: Scenario, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Purse, "draw", quieter(0.0, lambda *key: "shared" in key))
    found = cross_user.audit(scenario, world, tmp_path, 48)
    assert found.claimed <= 2.0 < found.bound


@pytest.mark.parametrize(
    "settings",
    [
        ("privacy.user.mechanism=adaptive",),
        ("privacy.user.mechanism=banded", *CYCLIC),
        ("sampling=poisson", "users_per_round=480", "rounds=3"),
    ],
)
def test_every_mechanism_over_sums_is_audited(world: World, tmp_path: Path, settings: tuple[str, ...]) -> None:
    found = joint.audit(load("audit", ["engine.cache=memory", *settings]), world, tmp_path, 256)
    assert 1.9 < found.claimed <= 2.0
    assert found.bound <= found.claimed < found.bound_without_noise


@pytest.mark.parametrize("settings", [("privacy.user.mechanism=adaptive",), ("privacy.user.mechanism=banded", *CYCLIC)])
def test_what_is_seen_of_a_user_is_the_coin_and_noise_of_the_planned_size(
    world: World, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    found = load("audit", ["engine.cache=memory", "privacy.user.clip=0.01", "shared_training.lr=1.0", *settings])
    found = joint.together(found, len(world.dataset.users), joint.REAL + 400)
    names = [f"canary {index:06d}" for index in range(400)]
    there = {name: index % 2 == 0 for index, name in enumerate(names)}
    with opened(found, world, dict(list(world.dataset.users.items())[: joint.REAL]), tmp_path / "node") as node:
        spots = dict(zip(names, joint.places(node.split.shared_start(), 400, 0), strict=True))
        quiet, loud = (joint.attack(joint.Crowd(node, spots, there), tmp_path / str(q), q) for q in (True, False))
        updates = list(node.train(Task(1, node.split.shared_start(), bound=0.01), node.users()))
    assert any(abs(float(x.update[place.name].flatten()[place.entry])) > 1e-4 for x in updates for place in spots.values())
    coin_M = torch.tensor(list(there.values())).double()
    assert torch.allclose(quiet.seen_TM, coin_M * quiet.effect_TM, atol=2e-3)  # of real users nothing
    noise_TM = loud.seen_TM - coin_M * loud.effect_TM
    planned = joint_plan(found).noise
    assert bool(((noise_TM.std(1) / planned - 1).abs() < 0.12).all())
    assert float((torch.corrcoef(noise_TM) - torch.eye(len(noise_TM))).abs().max()) < 0.2


def joint_plan(scenario: Scenario) -> Plan:
    """The noise of a run with so many users."""
    return plan(scenario, cohorts(scenario, joint.REAL + 400))


def test_what_cannot_be_audited_is_refused_with_its_reason(scenario: Scenario, world: World, tmp_path: Path) -> None:
    said = call("audit", "--quick", "privacy.example.epsilon=8", "--out", tmp_path / "audit.json")
    assert said.code == 2 and "privacy.example.epsilon is 8, and 64 canaries can show 2.71 at most" in said.err
    assert not (tmp_path / "audit.json").exists()
    with pytest.raises(InputError, match="the shared adapter has"):
        joint.audit(scenario, world, tmp_path, 10_000)
    local = replace(scenario, privacy=replace(scenario.privacy, user=replace(scenario.privacy.user, mechanism="local")))
    with pytest.raises(InputError, match=r"privacy\.user\.mechanism is 'local'"):
        joint.audit(local, world, tmp_path, 512)
    with pytest.raises(InputError, match=r"privacy\.secure is on"):
        joint.audit(replace(scenario, privacy=replace(scenario.privacy, secure=True)), world, tmp_path, 512)


def test_an_audit_that_fails_ends_the_command_with_a_sentence_and_code_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {"joint": Result(2.0, 2.5, 4.0, 0.95, 100), "example": Result(2.0, 0.1, 1.5, 0.95, 100)}
    monkeypatch.setattr(suite, "run", lambda *_: found)
    said = call("audit", "--out", tmp_path / "audit.json")
    assert said.code == 1
    assert "failed: joint: epsilon is at least 2.50 with 95% confidence, not 2.00" in said.out
    assert "failed: example: without noise it shows 1.50, not more than 2.00" in said.out


def test_each_place_is_a_number_of_one_canary_alone(scenario: Scenario) -> None:
    shared = {"b": torch.zeros(3, 4), "a": torch.zeros(5)}
    found = joint.places(shared, 17, scenario.seed)
    assert len(set(found)) == 17 and {x.name for x in found} == {"a", "b"}
    assert sampling.participations(joint.together(scenario, 10, 20), 20) == scenario.rounds

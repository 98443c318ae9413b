"""What attacks read without noise, what they no longer read under guarantee E, and that runs which they break are refused."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from client.data.types import Dataset, Encoded, Splits
from configs.errors import InputError
from configs.scenario import Scenario, load
from simulations.attacks import reconstruction, shared_path
from simulations.attacks.membership import membership, ratios
from simulations.attacks.suite import table
from simulations.training import World
from strategies.metrics import auc
from strategies.privacy import rules
from strategies.privacy.gaussian import mu_for
from tests.conftest import llama
from tests.simulations.command import call

USERS, EXAMPLES = 24, 16


def examples(user: int) -> tuple[Encoded, ...]:
    """A user who answers made-up prompts with one of two labels."""
    draw = torch.Generator().manual_seed(user)
    ids = [torch.randint(6, 96, (4 + i % 5,), generator=draw) for i in range(EXAMPLES)]
    return tuple(Encoded(x, len(x), int(torch.randint(0, 2, (), generator=draw)), i) for i, x in enumerate(ids))


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Only the privacy's settings count."""
    return load("movielens", ["engine.device=cpu", "engine.tokens_per_pass=65536", "privacy.example.delta=1e-5"])


@pytest.fixture(scope="module")
def small() -> World:
    """A tiny Llama, and users whose answers are coins."""
    users = {f"u{user:02d}": Splits(found[:12], found[12:13], found[13:]) for user in range(USERS) if (found := examples(user))}
    return World(llama(), Dataset(users, {}, "choice", ("good", "bad"), (4, 5), "one answer"))


# ---------------------------------------------------------------------- reconstruction
def test_a_release_without_noise_gives_a_users_examples_and_answers_away_and_guarantee_e_does_not(
    scenario: Scenario, small: World
) -> None:
    bare, guarded = reconstruction.choices(scenario, small, (0.0, 1.0), USERS)
    assert (bare.found, bare.answers) == (1.0, 1.0)
    assert guarded.found < guarded.blind + 0.15
    assert guarded.answers < guarded.usual + 0.1
    assert bare.examples == 12 * USERS and bare.catalogue == EXAMPLES * USERS and bare.blind == pytest.approx(12 / bare.catalogue)


def test_a_release_without_noise_gives_the_tokens_of_a_text_away_and_guarantee_e_does_not(scenario: Scenario, small: World) -> None:
    bare, guarded = (reconstruction.tokens(scenario, small, epsilon, 8, rank=8) for epsilon in (0.0, 1.0))
    assert bare.texts == 8 and bare.found == 1.0 and bare.blind < 0.1
    assert guarded.found < 0.5


# ---------------------------------------------------------------------- membership
def test_an_adapter_without_noise_tells_who_was_in_it_and_under_guarantee_e_no_more_than_its_epsilon(
    scenario: Scenario, small: World
) -> None:
    bare, guarded = (membership(scenario, small, epsilon, 8, trainings=16) for epsilon in (0.0, 1.0))
    assert bare.members + bare.others == 8 * 16 * EXAMPLES and abs(bare.members - bare.others) < 0.1 * bare.members
    most = NormalDist().cdf(mu_for(1.0, 1e-5) / 2**0.5)  # of any attack, on average
    assert bare.auc > 0.8 and bare.caught > 0.1
    assert guarded.auc < most + 3 / (6 * guarded.members) ** 0.5
    assert guarded.caught < np.exp(1.0) * 0.01 + 3 * (0.03 / guarded.members) ** 0.5


def test_a_likelihood_ratio_sees_what_an_example_does_whatever_others_do_and_nothing_where_it_does_nothing() -> None:
    draw = np.random.default_rng(0)
    coin_DN = draw.random((16, 500)) < 0.5
    hard_N, noise_DN = 5 * draw.standard_normal(500), draw.standard_normal((16, 500))
    seen, none = (auc(ratios(hard_N + noise_DN + effect * coin_DN, coin_DN).ravel(), coin_DN.ravel()) or 0 for effect in (2.0, 0.0))
    assert seen > 0.85 and abs(none - 0.5) < 0.03


# ---------------------------------------------------------------------- the block that is not noised
@pytest.mark.parametrize(("noised", "word"), [("private", "come back with the next"), ("shared", "un-noised private adapter")])
def test_one_example_is_read_through_the_block_that_is_not_noised_and_such_a_promise_is_refused(
    scenario: Scenario, small: World, noised: str, word: str
) -> None:
    found = shared_path.shared_path(scenario, small, noised, 1.0, 100)
    assert found.auc > 0.95
    assert found.bound > 1.5 * found.claimed  # the block's own noise was made for an epsilon of 1
    claimed = load("movielens", ["privacy=example", f"privacy.example.noised=[{noised}]"])
    assert any(word in said for said in rules.problems(claimed))
    assert not list(rules.problems(replace(claimed, privacy=replace(claimed.privacy, guarantee="unclaimed"))))


@pytest.mark.parametrize("looked_at", ["both", "release"])
def test_under_guarantee_e_the_same_example_is_not_read(scenario: Scenario, small: World, looked_at: str) -> None:
    found = shared_path.shared_path(scenario, small, looked_at, 1.0, 200)
    assert found.bound <= found.claimed
    assert abs(found.auc - 0.5) < NormalDist().cdf(mu_for(1.0, 1e-5) / 2**0.5) - 0.5 + 3 / 600**0.5


def test_the_two_cases_of_the_attack_differ_in_one_unit_and_the_rest_moves_nothing(small: World) -> None:
    without, with_it = shared_path.neighbours(small)
    assert with_it[:-1] == without[:-1]
    assert without[-1].start == without[-1].length and without[-1].label < 0  # nothing, in the place of an example
    assert with_it[-1].unit == without[-1].unit and with_it[-1].unit not in {e.unit for e in without[:-1]}
    assert sum(e.label for e in without[:-1]) * 2 == len(without) - 1


# ---------------------------------------------------------------------- all of them
def test_what_no_attack_can_read_is_refused(scenario: Scenario, small: World) -> None:
    texts = World(small.base, replace(small.dataset, label_ids=()))
    with pytest.raises(InputError, match=r"data\.task=choice"):
        reconstruction.choices(scenario, texts, (0.0,), 1)


def test_the_command_writes_every_attack_with_and_without_noise(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.attacks.suite.TRIALS", 4)
    said = call("attack", "movielens", *world.settings, "--out", tmp_path / "attacks.json")
    assert said.code == 0, said
    found = json.loads((tmp_path / "attacks.json").read_text())
    assert set(found) == {"examples", "tokens", "membership", "one example"}
    assert all({"no noise", "E, epsilon 8", "E, epsilon 2"} == set(found[name]) for name in found if name != "one example")
    assert table(found).row_count == sum(map(len, found.values()))
    assert "attacks.json" in said.out

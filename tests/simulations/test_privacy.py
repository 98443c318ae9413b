"""A run under guarantee E: what its ledger holds, what its report promises, and what is refused before it begins."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.scenario import load
from server.report import promise
from strategies.privacy import budget, rules
from strategies.privacy.ledger import Ledger
from tests.simulations.command import Said, call, tree

GUARDED = ("privacy=example", "privacy.example.epsilon=3", "shared_training.batch=2", "private_training.batch=100")


@pytest.fixture(scope="module")
def guarded(world: Any) -> tuple[Path, Said]:
    """The tiny world's run, guarded."""
    folder = world.folder / "runs" / "guarded"
    return folder, call("run", "movielens", *world.settings, *GUARDED, "--out", folder)


def test_a_run_spends_its_budget_and_no_more_and_says_so(guarded: tuple[Path, Said]) -> None:
    folder, said = guarded
    assert said.code == 0, said
    summary = json.loads((folder / "summary.json").read_text())
    assert 2.5 < summary["epsilon"]["example"] <= 3.0
    body = (folder / "report.html").read_text().split("<main>")[1]
    first = re.sub("<[^>]*>", "", body.strip().splitlines()[0])
    assert first.startswith("Privacy, example level") and "1e-05" in first and "Simulated" in first


def test_every_user_is_booked_for_every_round_in_which_they_train(guarded: tuple[Path, Said]) -> None:
    folder, _ = guarded
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    with Ledger(folder / "ledger.sqlite") as ledger:
        (run,) = ledger.runs()
        assert sum(ledger.rounds(user, run) for user in ledger.users()) == sum(row["releases"] for row in rounds)
        assert all(row["releases"] == row["users"] for row in rounds)


def test_a_run_that_is_repeated_from_an_earlier_round_even_under_another_name_costs_nothing_more(
    guarded: tuple[Path, Said], tmp_path: Path, world: Any
) -> None:
    folder, _ = guarded
    again = tmp_path / "again"
    shutil.copytree(folder, again, ignore=lambda _, names: [n for n in names if not n.startswith(("ledger", "scenario"))])
    with Ledger(again / "ledger.sqlite") as ledger:
        before = ledger.histories()
    assert call("run", "movielens", *world.settings, *GUARDED, "name=other", "--out", again).code == 0
    with Ledger(again / "ledger.sqlite") as ledger:
        assert ledger.histories() == before
    assert (again / "users.csv").read_text() == (folder / "users.csv").read_text()


@pytest.mark.parametrize("command", ["run", "resume"])
def test_rounds_whose_ledger_is_gone_are_not_gone_on_with_and_nothing_is_lost(
    guarded: tuple[Path, Said], tmp_path: Path, world: Any, command: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(guarded[0], folder)
    (folder / "ledger.sqlite").unlink()
    before = tree(folder)
    words = ("run", "movielens", *world.settings, *GUARDED, "--out", folder) if command == "run" else ("resume", folder)
    said = call(*words)
    assert said.code == 2
    assert "ledger.sqlite is missing" in " ".join(said.err.split()) and "Traceback" not in said.err
    assert tree(folder) == before


def test_each_guarantee_keeps_a_ledger_and_without_a_promise_none_is_asked_for() -> None:
    found = {g: set(promise.ledgers(load("movielens", [f"privacy={g}"]))) for g in ("off", "unclaimed", "example", "user", "both")}
    assert found == {"off": set(), "unclaimed": set(), "example": {"example"}, "user": {"user"}, "both": {"example", "user"}}


def test_noise_makes_another_run(guarded: tuple[Path, Said], world: Any) -> None:
    folder, _ = guarded
    assert (folder / "users.csv").read_text() != (world.run / "users.csv").read_text()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (("privacy=example", "private_training.early_stopping=true"), "early_stopping"),
        (("privacy=example", "privacy.example.noised=[private]"), "come back with the next"),
        (("privacy=example", "privacy.example.noised=[shared]"), "un-noised private adapter"),
        (("privacy=example", "privacy.accountant=gdp"), "under-estimates"),
        (("privacy=example", "privacy.example.noised=[]"), "come back with the next"),
        (("privacy=both", "weights=uniform", "privacy.example.noised=[shared]"), "un-noised private adapter"),
        (("privacy=example", "data.name=files", "data.task=choice"), "data.labels is empty"),
        (("privacy=user", "weights=uniform", "data.name=files", "data.task=choice"), "data.labels is empty"),
        (("privacy=user",), "weights must be"),
        (("privacy=user", "weights=uniform", "aggregator=flower.FedMedian"), "their sum"),
        (("privacy=user", "weights=uniform", "scheme=local_only"), "releases nothing"),
        (("privacy=user", "weights=uniform", "privacy.user.mechanism=banded"), "users_per_round"),
        (("privacy=user", "weights=uniform", "privacy.user.mechanism=banded", "users_per_round=4"), "sampling=cyclic"),
        (("privacy=user", "weights=uniform", "privacy.user.mechanism=banded", "privacy.waive=[scores]"), "must not name 'scores'"),
    ],
)
def test_a_promise_that_would_not_hold_is_refused_with_its_reason(here: Path, settings: tuple[str, ...], word: str) -> None:
    said = call("run", "movielens", *settings, "--out", here / "run")
    assert said.code == 2
    assert word in said.err
    assert not (here / "run").exists()


def test_a_release_made_before_any_private_adapter_exists_may_be_the_only_one_noised() -> None:
    settings = ["privacy=example", "privacy.example.noised=[shared]", "rounds=3", "private_from=3", "personalize=1"]
    assert list(rules.problems(load("movielens", settings))) == []
    line = promise.promise(load("movielens", settings), {"example": 2.5})
    assert "lets out of a user, but not the user's private adapter, is (2.5, 1e-05)-DP" in line
    assert "together with the user's private adapter, is (2.5," in promise.promise(load("movielens", settings[:1]), {"example": 2.5})


def test_a_users_noise_follows_from_public_numbers_and_fills_the_budget() -> None:
    scenario = load("results", ["privacy=example"])
    few, many = (budget.noise(scenario, 100, rounds) for rounds in (15, 60))
    assert all(few[name] < many[name] for name in ("shared", "private"))
    tight = budget.noise(load("results", ["privacy=example", "privacy.example.epsilon=1"]), 100, 15)
    assert all(tight[name] > few[name] for name in few)

"""`show privacy` and `plan privacy`: what a ledger holds, and what a run would cost, in words that hold."""

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from client import base as bases
from client import data
from client.split import split
from configs.scenario import load
from server.joint import cohorts
from server.report import planned, privacy
from server.report.guarantees import words
from server.report.promise import JOINT, LEDGER, accounts, promise
from simulations import planning
from strategies.privacy import planner
from strategies.privacy.accounting import epsilon
from strategies.privacy.events import Event
from strategies.privacy.ledger import Ledger, Spend
from strategies.privacy.planner import Setting
from tests.simulations.command import Said, call

WHOLE = ("shared_training.batch=100000", "private_training.batch=100000")  # full batches, whose costs are a closed form
GUARDED = ("privacy=example", "privacy.example.epsilon=3", "rounds=2", "users_per_round=0", *WHOLE, "controls=[base]",
           "evaluate_every=0")  # fmt: skip


@pytest.fixture(scope="module")
def guarded(world: Any) -> Path:
    """The tiny world's run under guarantee E."""
    folder = world.folder / "runs" / "in words"
    assert call("run", "movielens", *world.settings, *GUARDED, "--out", folder).code == 0
    return folder


@pytest.fixture
def both(guarded: Path, tmp_path: Path) -> Path:
    """The same run as if guarantee U had held too: one user paid for three rounds, one for one."""
    folder = tmp_path / "both"
    shutil.copytree(guarded, folder)
    text = (folder / "scenario.yaml").read_text()
    (folder / "scenario.yaml").write_text(text.replace("guarantee: example", "guarantee: both"))
    with Ledger(folder / JOINT) as ledger:
        ledger.spend([Spend(user, "tiny", n, "joint", Event(2.0), False) for user, most in (("u1", 3), ("u2", 1)) for n in range(most)])
    return folder


def about(said: Said) -> dict[str, str]:
    """What the lines of a table say, by their first word or two."""
    heads = ("promised", "unit", "trusted", "spent", "over", "not covered")
    lines = [line for line in said.out.splitlines() if line.startswith(heads)]
    return {head: line.removeprefix(head).strip() for head in heads for line in lines if line.startswith(head)}


# ------------------------------------------------------------------ show privacy
def test_a_ledger_is_said_in_words_with_the_number_the_unit_the_neighbours_and_whom_to_trust(guarded: Path) -> None:
    said = call("show", "privacy", guarded)
    assert (said.code, said.err) == (0, "")
    spent = json.loads((guarded / "summary.json").read_text())["epsilon"]["example"]
    assert 2.9 < spent <= 3
    found = about(said)
    assert f"({spent:.3g}, 1e-05)-DP in any one training example of that user" in found["promised"]
    assert found["unit"].startswith("one row; neighbours are") and "zero-out" in found["unit"]
    assert found["trusted"].startswith("nobody") and "Simulated" in found["trusted"]
    assert f"epsilon {spent:.3g} of 3 by the user who spent most" in found["spent"] and "of 6, at delta 1e-05 (pld)" in found["spent"]
    assert found["over"] == "1 run and 3 rounds; any one user took part in 3 of them at most"
    assert all(name in found["not covered"] for name in ("how many examples", "scores", "controls"))


def test_the_page_says_the_same_and_its_first_line_says_it_first(guarded: Path) -> None:
    page = html.unescape(re.sub("<[^>]*>", "", (guarded / "report.html").read_text().partition("<main>")[2]))
    scenario = load(guarded / "scenario.yaml")
    (account,) = accounts(scenario, guarded)
    for name, sentence in privacy.statements(account, scenario):
        assert f"{name}: {sentence}" in page
    said = words("example", scenario)
    first = page.strip().splitlines()[0]
    assert first == promise(scenario, {"example": account.worst})
    assert said.sentence(account.worst, 1e-5) in first
    assert all(name in first for name in said.uncovered)


def test_a_run_without_a_guarantee_says_so_and_its_page_has_no_such_section(world: Any) -> None:
    said = call("show", "privacy", world.run)
    assert (said.code, said.out) == (0, "Privacy: no guarantee is claimed for this run (training was not noised).\n")
    assert "in words" not in (world.run / "report.html").read_text()


def test_two_guarantees_are_two_numbers(both: Path) -> None:
    said = call("show", "privacy", both, "--users", "1")
    assert said.code == 0
    assert privacy.TWO in said.out
    example, user = said.out.split("Guarantee U, user level")
    assert "Guarantee E, example level" in example
    worst, mid = epsilon([Event(2.0, 3)], 1e-5), (epsilon([Event(2.0, 3)], 1e-5) + epsilon([Event(2.0)], 1e-5)) / 2
    assert f"epsilon {worst:.3g} of 8 by the user who spent most, {mid:.3g} by the median one of 2" in user
    assert "the whole data of any one user" in user
    assert "the server: it sees each user's clipped update" in user
    assert "own private adapter, against whoever gets hold of it" in user
    assert "Simulated" not in user, "its noise was fresh"
    assert re.search(r"^u1 +\d", user, re.MULTILINE) and not re.search(r"^u2 +\d", user, re.MULTILINE)
    line = promise(load(both / "scenario.yaml"), {"example": 2.99, "user": worst})
    assert line.count("-DP in ") == 2 and line.count("Simulated") == 1


def test_a_ledger_alone_lists_its_runs_and_promises_nothing_about_adapters_that_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "life.sqlite"
    with Ledger(path) as ledger:
        for run, rounds, fresh in (("first-0a", 2, False), ("second-0b", 3, True)):
            ledger.spend([Spend(u, run, n, "shared", Event(9.0), not fresh) for u in ("a", "b") for n in range(rounds)])
        ledger.spend([Spend("a", "second-0b", 1, "final", Event(9.0), False)])
    said = call("show", "privacy", path, "privacy.example.delta=1e-6", "privacy.example.epsilon=2")
    assert said.code == 0
    found = about(said)
    assert f"epsilon {epsilon([Event(9.0, 6)], 1e-6):.3g} of 2" in found["spent"]
    assert found["over"] == "2 runs and 5 rounds; any one user took part in 5 of them at most"
    assert "private adapter" not in found["promised"]
    assert re.search(r"^first-0a +2 +2 +shared +from the seed$", said.out, re.MULTILINE)
    assert re.search(r"^second-0b +2 +3 +final, shared +the system's *$", said.out, re.MULTILINE)
    (tmp_path / "home").mkdir()
    shutil.copy(path, tmp_path / "home" / LEDGER)
    assert about(call("show", "privacy", tmp_path / "home", "privacy.example.delta=1e-6"))["over"] == found["over"]


def test_noise_of_nothing_promises_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / LEDGER) as ledger:
        ledger.spend([Spend("a", "r", 1, "shared", Event(0.0), True)])
    assert about(call("show", "privacy", tmp_path))["promised"] == "Nothing: a step had no noise."


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "needs a run's folder or a ledger's file"),
        (["rounds=5"], "needs a run's folder or a ledger's file"),
        (["{runs}/in word"], "did you mean '{runs}/in words'"),
        (["{runs}"], "neither a run nor a ledger"),
        (["{runs}/tiny/users.csv"], "users.csv"),
        (["{runs}/in words", "privacy.example.dleta=1e-6"], "delta"),
        (["{runs}/in words", "--rounds"], "--rounds"),
    ],
)
def test_a_word_that_is_no_ledger_is_answered_in_a_sentence(guarded: Path, arguments: list[str], word: str) -> None:
    runs = str(guarded.parent)
    said = call("show", "privacy", *(x.format(runs=runs) for x in arguments))
    assert (said.code, said.out) == (2, "")
    assert word.format(runs=runs) in said.err and said.err.count("\n") == 1


# ------------------------------------------------------------------ plan privacy
def test_a_plan_has_the_noise_that_the_run_then_books(guarded: Path) -> None:
    scenario = load(guarded / "scenario.yaml")
    base = bases.load(scenario.model, "cpu")
    dataset, found = data.load(scenario.data, base.tokenizer, scenario.seed), planning.numbers(split(scenario, base))
    with Ledger(guarded / LEDGER) as ledger:
        for user, its in dataset.users.items():
            setting = Setting(scenario, 6, len(its.train), len(its.train), found, cohorts)
            parts = planner.parts(setting, "example")
            assert sorted(event.noise for event in ledger.history(user)) == sorted({part.noise for part in parts})
            assert sum(event.steps for event in ledger.history(user)) == sum(part.steps for part in parts)


def test_a_plan_counts_the_parameters_that_train(world: Any) -> None:
    scenario = load("movielens", [*world.settings, "scheme=fedsa", "personalize=0"])
    whole = split(scenario, bases.load(scenario.model, "cpu"))
    found, start = planning.numbers(whole), whole.start()
    halves = {letter: sum(v.numel() for k, v in start.items() if f"lora_{letter}" in k) for letter in "AB"}
    assert found == {("shared", "shared"): halves["A"], ("shared", "private"): halves["B"], ("joint", "shared"): halves["A"]}


def test_a_plan_is_told_for_what_the_scenario_promises_or_for_what_it_could(world: Any) -> None:
    off = call("plan", "privacy", "movielens", *world.settings, *WHOLE)
    assert (off.code, off.err) == (0, "")
    assert off.out.startswith("privacy=off promises nothing.")
    assert "Guarantee E, example level (one row): epsilon 8" in off.out and "Guarantee U, user level" in off.out
    example = call("plan", "privacy", "movielens", *world.settings, *WHOLE, "privacy=example", "privacy.example.epsilon=1")
    assert "epsilon 1, delta 1e-05 (pld); 6 users, 4 a round, 3 rounds" in example.out
    assert "Guarantee U" not in example.out
    assert re.search(r"^private adapter +[\d,]+ +[\d.]+ +1 ", example.out, re.MULTILINE)
    assert "times the signal" in example.out
    assert example.out.rstrip().endswith(planned.NOTE)
    unsound = call("plan", "privacy", "movielens", *world.settings, *WHOLE, "privacy=example", "private_training.early_stopping=true")
    assert "not yet a promise: private_training.early_stopping" in unsound.out


def test_users_and_examples_may_be_told_instead_of_read(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("client.data.load", reads)
    said = call("plan", "privacy", "movielens", *world.settings, *WHOLE, "privacy=example", "--users", "5000", "--examples", "70")
    assert said.code == 0
    assert "5,000 users, 4 a round" in said.out and "trains on 70 examples" in said.out


def test_a_rank_that_a_plan_names_has_as_few_parameters_as_it_says_and_the_next_one_too_many(world: Any) -> None:
    scenario = load("movielens", [*world.settings, *WHOLE, "private.rank=6", "privacy=example"])
    base = bases.load(scenario.model, "cpu")
    setting = Setting(scenario, 6, 50, 50, planning.numbers(split(scenario, base)), cohorts)
    part = next(part for part in planner.parts(setting, "example") if part.name == "private")

    def count(*settings: str) -> int:
        chosen = load("movielens", [*world.settings, "privacy=example", *settings])
        return planning.numbers(split(chosen, base))["private", "private"]

    most = count("private.rank=2") + 1
    lora, core = planning.ranks(scenario, base, part, most)
    assert lora == f"private.rank=2 has {most - 1:,}"
    found = re.fullmatch(r"private.kind=core private.rank=(\d+) has ([\d,]+)", core)
    assert found
    assert count("private.kind=core", f"private.rank={found[1]}") == int(found[2].replace(",", "")) <= most
    assert count("private.kind=core", f"private.rank={int(found[1]) + 1}") > most
    assert planning.ranks(scenario, base, part, 1)[0].startswith("even private.rank=1 has ")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["demo"], "did you mean 'plan privacy demo'"),
        (["privcy"], "did you mean 'privacy'"),
        (["privacy", "--ledger", "nowhere"], "nowhere does not exist"),
        (["privacy", "scheme=local_only", "privacy=user"], "releases nothing"),
        (["privacy", "privacy=example", "privacy.accountant=gdp"], "under-estimates"),
        (["privacy", "privacy=example", "privacy.example.epsilon=2.5", "--ledger", "{run}"], "epsilon"),
    ],
)
def test_what_cannot_be_planned_is_a_sentence(world: Any, guarded: Path, arguments: list[str], word: str) -> None:
    what, *more = (x.format(run=guarded) for x in arguments)
    said = call("plan", what, *([] if what == "demo" or what == "privcy" else ("movielens", *world.settings, *WHOLE)), *more)
    assert (said.code, word in said.err, said.err.count("\n")) == (2, True, 1), said

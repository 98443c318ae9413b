"""The command that serves users who were never trained on: what it writes, what it leaves alone, and what it refuses in a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.simulations.command import call, tree
from tests.simulations.conftest import World

SETTINGS = ("privacy=example", "private.kind=core", "weights=uniform", "data.unseen_users=2", "rounds=1", "evaluate_every=0",
            "users_per_round=0", "private.targets=[down_proj]", "shared.targets=[down_proj]")  # fmt: skip
EXAMPLES = ("--examples", "0,1,3")


@pytest.fixture(scope="module")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run under guarantee E, and what became of its new users."""
    run = tmp_path_factory.mktemp("served") / "run"
    assert call("run", "movielens", *world.settings, *SETTINGS, "--out", run).code == 0
    before = {name: kept for name, kept in tree(run).items() if "lock" not in name}
    said = call("newcomer", run, "--ways", "mean,nearest:candidates=3", *EXAMPLES)
    assert said.code == 0, said.err
    after = tree(run)
    assert all(after[name][0] == size for name, (size, _) in before.items())
    assert all(after[name] == kept for name, kept in before.items() if Path(name).is_file())  # ledger and adapters as they were
    assert (run / "newcomer.md").read_text().strip() in said.out
    return run, json.loads((run / "newcomer.json").read_text())


def test_every_row_is_there_and_controls_are_what_they_are_called(served: tuple[Path, dict[str, Any]]) -> None:
    found = served[1]["runs"][0]
    rows = found["rows"]
    assert set(rows) == {"base", "shared", "majority", "user_bias", "local_only", "shared, start", "shared, trained", "mean, start",
                         "mean, trained", "nearest:candidates=3, start", "nearest:candidates=3, trained"}  # fmt: skip
    assert found["newcomers"] == 2 and found["have"] == {"0": 2, "1": 2, "3": 2} and set(found["bytes"]) == set(served[1]["ways"])
    for n in ("0", "1", "3"):
        assert rows["base"][n] == rows["base"]["0"] and rows["shared"][n] == rows["shared"]["0"]  # they see no example
        assert rows["shared, start"][n]["nll"] == pytest.approx(rows["shared"]["0"]["nll"], abs=1e-6)  # a core begins as no change
        assert rows["mean, start"][n] == rows["mean, start"]["0"]
    assert rows["mean, start"]["0"] != rows["shared"]["0"]
    assert rows["nearest:candidates=3, start"]["0"]["nll"] == pytest.approx(rows["mean, start"]["0"]["nll"], abs=1e-5)
    assert rows["majority"]["0"]["nll"] == pytest.approx(0.6931, abs=1e-4) != rows["majority"]["3"]["nll"]
    assert rows["user_bias"]["0"]["nll"] == pytest.approx(rows["shared"]["0"]["nll"], abs=1e-5) != rows["user_bias"]["3"]["nll"]
    for name in ("shared", "mean", "nearest:candidates=3"):
        assert (
            rows[f"{name}, trained"]["0"] == rows[f"{name}, start"]["0"]
            and rows[f"{name}, trained"]["3"] != rows[f"{name}, start"]["3"]
        )
    assert found["against_usual"]["shared, trained"]["3"]["mean"] == 0
    assert all(
        0 < s["cpu_median"] <= s["cpu_most"] and 0 < s["median"] <= s["most"] for by in found["seconds"].values() for s in by.values()
    )


def test_runs_are_laid_side_by_side_and_say_the_same_twice(served: tuple[Path, dict[str, Any]], here: Path) -> None:
    run, first = served
    said = call("newcomer", run, run, "--ways", "mean", *EXAMPLES, "--out", here / "both")
    assert said.code == 0 and "shared + private, the usual way" in said.out, said.err
    both = json.loads((here / "both" / "newcomer.json").read_text())["runs"]
    assert both[0]["rows"] == both[1]["rows"]
    assert both[0]["rows"]["mean, trained"] == first["runs"][0]["rows"]["mean, trained"]
    still = call("newcomer", run, "private_training.lr=0", "--ways", "mean", "--examples", "3", "--out", here / "still")
    assert still.code == 0, still.err
    (alone,) = json.loads((here / "still" / "newcomer.json").read_text())["runs"]
    assert alone["rows"]["mean, trained"] == alone["rows"]["mean, start"] == {"3": both[0]["rows"]["mean, start"]["3"]}


def test_what_cannot_be_is_refused_in_a_sentence(world: World, served: tuple[Path, dict[str, Any]], here: Path) -> None:
    run, plain = served[0], ("movielens", *world.settings)
    for words, sentence in (
        ((world.run, "--ways", "nearest"), "may be released, and privacy.guarantee='off' makes none"),
        ((*plain, *SETTINGS, "privacy=both", "--ways", "mean"), "promises that no other user learns"),
        ((*plain, *SETTINGS, "private.kind=lora", "--ways", "mean"), "private.kind='lora' does not add"),
        ((*plain, *SETTINGS, "data.unseen_users=0"), "data.unseen_users is 0"),
        ((*plain, *SETTINGS, "personalize=0", "--ways", "mean"), "personalize is 0"),
        ((*plain, *SETTINGS, "scheme=shared_only", "personalize=0", "--ways", "mean"), "has no private adapter beside"),
        (
            (run, "--ways", "hypernet"),
            "data.name 'files' has no profiles that users publish, which hypernet reads (those with: movielens)",
        ),
        ((run, "--ways", "nearst"), "unknown way 'nearst' (did you mean 'nearest'?)"),
        ((run, "--ways", "nearest:candidates=x"), "must be a number"),
        ((run, "--examples", "1,-2"), "--examples must be counts"),
        ((run, "--part", "tset"), "did you mean 'test'?"),
        ((run, "rounds=2", "--ways", "mean"), "only engine.* and private_training.*"),
        ((run, run, "--ways", "mean"), "--out is needed with 2 runs"),
        ((run.parent / "rum", "--ways", "mean"), "holds no run"),
        (("demoo", "--ways", "mean"), "no scenario 'demoo' (did you mean 'demo'?)"),
    ):
        said = call("newcomer", *words)
        assert said.code == 2 and sentence in said.err and said.err.count("\n") == 1, (words, said)
    assert not list(here.iterdir()) and not (world.run / "newcomer.json").exists()
    (run / "checkpoint.json").rename(run / "checkpoint.away")
    said = call("newcomer", run, "--ways", "mean")
    (run / "checkpoint.away").rename(run / "checkpoint.json")
    assert said.code == 2 and "is not finished" in said.err

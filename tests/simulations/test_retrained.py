"""Controls that need a training of their own: what they are trained on, and that what is reused is what would come out again."""

import csv
from pathlib import Path

import pytest

from configs.scenario import Local, Scenario
from simulations.retrained import LOCAL_BATCH, LR, extra_rounds, local_only, shared_epochs
from tests.simulations.command import call
from tests.simulations.conftest import World

ALONE = ("scheme=shared_only", "personalize=0", "controls=[shared,user_bias]")


def column(folder: Path, name: str) -> dict[str, str]:
    """A column of a run's users, by user, without the unseen ones."""
    with (folder / "users.csv").open() as file:
        return {row["user"]: row[name] for row in csv.DictReader(file) if row["seen"] == "True"}


@pytest.mark.parametrize(("settings", "trained"), [
    (("private_from=3", "controls=[shared,shared_private,pooled]"), 0),  # the main run's own rounds are taken
    (("private_from=1", "controls=[shared,shared_private,pooled]"), 3),
    (("scheme=fedrep", "controls=[shared,user_bias,shared_private]"), 3),
])  # fmt: skip
def test_shared_is_what_a_federation_without_private_adapters_comes_to(
    world: World, tmp_path: Path, settings: tuple[str, ...], trained: int
) -> None:
    main = call("run", "movielens", *world.settings, *settings, "--out", tmp_path / "main")
    assert (main.code, main.out.count("a control")) == (0, trained + ("pooled" in settings[-1])), main.err
    alone = call("run", "movielens", *world.settings, *ALONE, "--out", tmp_path / "alone")
    assert alone.code == 0, alone.err
    assert column(tmp_path / "main", "shared.nll") == column(tmp_path / "alone", "shared.nll") != {}
    if "user_bias" in settings[-1]:
        assert column(tmp_path / "main", "user_bias.nll") == column(tmp_path / "alone", "user_bias.nll")


def test_in_one_place_adamw_takes_the_scenarios_rate_and_batch_and_replaces_sgds() -> None:
    mine = Scenario(rounds=10, users_per_round=5, shared_training=Local(lr=0.3, batch=7, max_norm=2.0))
    assert local_only(mine, 20).private_training == Local(lr=0.3, batch=7, max_norm=2.0, epochs=2, early_stopping=True)
    sgd = Scenario(rounds=10, users_per_round=5, shared_training=Local(optimizer="sgd", lr=0.3, momentum=0.5, batch=4096, max_norm=0.0))
    assert local_only(sgd, 20).private_training == Local(lr=LR, batch=LOCAL_BATCH, epochs=2, early_stopping=True)


def test_as_many_epochs_and_rounds_as_the_others_had() -> None:
    few = Scenario(rounds=20, users_per_round=5, scheme="dual", private_from=10, personalize=4,
                   private_training=Local(epochs=3), shared_training=Local(epochs=2))  # fmt: skip
    assert shared_epochs(few, 50) == 4  # 20 rounds of 2 epochs, for a tenth of the users each
    assert extra_rounds(few, 50) == 35  # 10 rounds of 3 epochs for a tenth, and 4 for all: 7 epochs, of 0.2 a round
    assert extra_rounds(Scenario(rounds=20, scheme="fedrep", personalize=4), 50) == 4  # what began anew was thrown away

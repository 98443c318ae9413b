"""Guarantee E has one budget for a life: spread over periods, never overspent, and paid side by side only where that is sound."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from client.purse import Purse
from configs.errors import InputError
from configs.life import Life
from configs.scenario import Scenario, load
from strategies import schemes
from strategies.privacy import budget, lives, rules
from strategies.privacy.accounting import epsilon
from strategies.privacy.ledger import LEDGER, Ledger

GUARDED = (
    "privacy=example",
    "privacy.example.epsilon=4",
    "weights=uniform",
    "rounds=3",
    "life.periods=5",
    "life.period=1",
    "scheme=dual",
)
SPREADS = ("uniform", "decaying", "demand")


def scenario(*more: str) -> Scenario:
    return load("movielens", [*GUARDED, *more])


@pytest.mark.parametrize("spread", SPREADS)
def test_a_budget_is_spread_whole_and_never_taken_back(spread: str) -> None:
    counts = (10, 30, 5, 8, 40)
    assert sum(lives.shares(scenario(f"life.spread={spread}").life, counts)) == pytest.approx(1)
    found = [lives.allowed(scenario(f"life.period={t}", f"life.spread={spread}"), counts[:t]) for t in range(1, 6)]
    assert found[-1] == 4.0 and all(0 < x <= 4.0 for x in found)
    if spread != "demand":
        assert found == sorted(found)


def test_decaying_halves_and_demand_follows_the_examples() -> None:
    decaying = lives.shares(Life(periods=4, spread="decaying"))
    assert [b / a for a, b in pairwise(decaying)] == pytest.approx([0.5] * 3)
    assert lives.shares(Life(periods=4, spread="demand"), (10, 30)) == pytest.approx([1 / 8, 3 / 8, 1 / 4, 1 / 4])


def lived(folder: Path, *more: str, examples: Sequence[int] = (20, 20, 20, 20, 20)) -> list[dict[str, Any]]:
    """Noise and epsilon of each period of a user who takes part in every round."""
    found = []
    with Ledger(folder / LEDGER) as ledger:
        for period, count in enumerate(examples, 1):
            chosen = scenario(f"life.period={period}", "shared_training.batch=99", "private_training.batch=99", *more)
            purse = Purse(chosen, ledger, f"run{period}", demand={"ann": tuple(examples[:period])})
            noise = purse.noise("ann", count, chosen.rounds)
            assert noise
            paid, costs = set(), {}
            for round_ in range(1, chosen.rounds + 1):
                costs = {what: budget.event(z, count, 99, 1) for what, z in noise.items()}
                paid |= purse.book(round_ + period * 10, schemes.of(chosen), {"ann": costs})
            total = [epsilon(events, 1e-5) for events in ledger.histories().values()]
            found.append(
                {"noise": noise["private"], "spent": total, "paid": paid, "again": purse.book(99, schemes.of(chosen), {"ann": costs})}
            )
    return found


def test_a_uniform_life_has_the_same_noise_in_every_period_and_ends_at_its_budget(tmp_path: Path) -> None:
    found = lived(tmp_path)
    assert [x["noise"] for x in found] == pytest.approx([found[0]["noise"]] * 5, rel=1e-3)
    assert all(x["paid"] == {"ann"} for x in found) and found[-1]["spent"] == pytest.approx([4.0], rel=2e-3)
    assert max(found[-1]["spent"]) <= 4.0


@pytest.mark.parametrize("spread", SPREADS)
def test_no_period_spends_more_than_it_has(spread: str, tmp_path: Path) -> None:
    for period, x in enumerate(lived(tmp_path, f"life.spread={spread}"), 1):
        assert max(x["spent"]) <= lives.allowed(scenario(f"life.period={period}", f"life.spread={spread}"), (20,) * period) + 1e-9
        assert x["again"] == frozenset(), "a round beyond the plan is refused"


PARTITION = ("life.account=partition", "life.by=time", "life.start=0", "life.end=100")


def test_under_partition_each_period_has_the_whole_budget_and_no_example_costs_more(tmp_path: Path) -> None:
    found = lived(tmp_path, *PARTITION)
    assert len(found[-1]["spent"]) == 5, "one account for each period"
    assert found[-1]["spent"] == pytest.approx([4.0] * 5, rel=2e-3) and max(found[-1]["spent"]) <= 4.0
    assert found[0]["noise"] < lived(tmp_path / "..", "life.spread=uniform")[0]["noise"] / 2


REFUSED = {
    "replay under partition": ((*PARTITION, "life.keep=replay"), "one period only"),
    "counts under partition": (("life.account=partition",), "life.by=time"),
    "the data's own borders": (("life.account=partition", "life.by=time"), "life.start and life.end"),
    "importances of data": (("life.keep=ewc", "life.keep_options.fisher=1"), "without noise"),
    "guarantee U": (("privacy=user",), "guarantee U"),
    "a core that restarts": (("life.keep=restart", "private.kind=core"), "of a core"),
    "fresh adapters": (("life.keep=ewc", "scheme=fedrep"), "begin anew each round"),
    "nothing private": (("life.keep=ewc", "scheme=shared_only"), "has none"),
    "no such period": (("life.period=6",), "life.periods=5"),
    "no period": (("life.period=0",), "give 'live'"),
    "no life": (("life.periods=0", "life.period=0", "life.keep=ewc"), "no periods"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_hold_is_refused_with_its_reason(name: str) -> None:
    settings, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        rules.refuse(scenario(*settings))


def test_what_holds_is_not_refused() -> None:
    for more in (
        (),
        PARTITION,
        ("life.keep=replay",),
        ("life.keep=ewc",),
        (*PARTITION, "life.keep=olora"),
        ("life.keep=ewc", "private.kind=core"),
    ):
        rules.refuse(scenario(*more))

"""Commands on a life's folder: what it has come to, a user's model of it in stock PEFT, its ledger; and what wants a run says so."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from client import base as bases
from client import data
from configs.scenario import load
from simulations.life import periods
from tests.simulations.command import call
from tests.simulations.conftest import World
from tests.simulations.test_long_life import SETTINGS

KEPT = ("data.users=2", "life.periods=3", "private_training.lr=0.3", "shared_training.lr=0.1")


@pytest.fixture(scope="module")
def lives(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A life by each way to keep that applies a sum; one under guarantee E, and one of which two periods are over."""
    home, found = tmp_path_factory.mktemp("lives"), {}
    more = {"olora": (), "restart": (), "slow_fast": ("privacy=example", "weights=uniform")}
    for keep, words in more.items():
        scenario = load("movielens", [*world.settings, *SETTINGS, *KEPT, f"life.keep={keep}", *words])
        for number in periods.live(scenario, home / keep):
            if keep == "restart" and number == 2:
                break
        found[keep] = home / keep
    return found


@pytest.mark.parametrize("keep", ["olora", "restart", "slow_fast"])
def test_an_exported_user_is_in_stock_peft_what_the_life_scored(lives: dict[str, Path], keep: str, tmp_path: Path) -> None:
    from peft import PeftModel

    last = 2 if keep == "restart" else 3
    scored = json.loads((lives[keep] / f"period-000{last}" / "after.json").read_text())["scores"]
    scenario = load(lives[keep] / "scenario.yaml")
    base = bases.load(scenario.model, "cpu")
    every = data.every_period(scenario.data, base.tokenizer, scenario.seed, scenario.life)
    user = sorted(scored)[0]
    assert call("export", lives[keep], user, "--out", tmp_path / "out").code == 0
    model = PeftModel.from_pretrained(base.model, str(tmp_path / "out")).eval()
    for number, period in enumerate(every):
        losses = []
        for e in period.users[user].test if user in period.users else ():
            with torch.no_grad():
                logits = model(input_ids=e.ids[None]).logits[0, -1, list(every[0].label_ids)]
            losses.append(float(F.cross_entropy(logits[None], torch.tensor([e.label]))))
        if losses:
            assert sum(losses) / len(losses) == pytest.approx(scored[user][number], abs=1e-4)


def test_show_prints_measures_and_periods_and_says_how_to_go_on(lives: dict[str, Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lives["olora"].parent)
        whole, half = call("show", "olora", "--users", "1", "--rounds"), call("show", "restart")
    assert whole.code == 0 and "forgetting" in whole.out and "kept by olora" in whole.out and "training loss" in whole.out, whole
    assert [line.split()[0] for line in whole.out.splitlines() if " of 1 " in line] == ["1", "2", "3"]
    assert "go on with" not in whole.out
    assert half.code == 0 and "2 of 3 periods are over; go on with: python -m simulations live restart/scenario.yaml" in half.out
    assert len([line for line in half.out.splitlines() if " of 1 " in line]) == 2


def test_show_privacy_reads_the_lifes_ledger(lives: dict[str, Path]) -> None:
    said = call("show", "privacy", lives["slow_fast"], "--users", "2")
    assert said.code == 0 and "example" in said.out, said
    spent = json.loads((lives["slow_fast"] / "period-0003" / "after.json").read_text())["epsilon"]["example"]
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[-1][1:] == [f"{spent:.3g}", "3"], said.out
    assert "no guarantee is claimed" in call("show", "privacy", lives["olora"]).out


def test_what_wants_a_run_says_that_this_is_a_life(lives: dict[str, Path], tmp_path: Path) -> None:
    life = lives["olora"]
    for words, said in (
        (("resume", life), "holds a life, and is no run by itself; go on with the life by: python -m simulations live"),
        (("run", life), "holds a life"),
        (("resume", life / "period-0001"), "lies in the life"),
        (("compare", life, life), "name its periods, such as"),
        (("export", life / "period-0001", "ann", "--out", tmp_path / "x"), "only the last period of"),
    ):
        failed = call(*words)
        assert failed.code == 2 and said in failed.err, (words, failed)
    assert not (life / "period-0001" / "private").exists() and not (tmp_path / "x").exists()
    assert call("compare", life / "period-0001", life / "period-0003").code == 0

"""A run whose sums are secure: with guarantee U it spends its budget on the nodes' own noise, and what cannot be is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from strategies.privacy.ledger import Ledger
from tests.simulations.command import call

SECURE = ("weights=uniform", "max_release_norm=1", "privacy.masking.nodes=3", "privacy.secure=true")


def test_under_guarantee_u_a_secure_run_spends_its_budget_and_says_whom_it_trusts(world: Any, tmp_path: Path) -> None:
    settings = (*world.settings, *SECURE, "privacy=user", "privacy.user.clip=0.01", "privacy.user.epsilon=3", "controls=[shared]")
    said = call("run", "movielens", *settings, "--out", tmp_path / "run")
    assert said.code == 0, said
    assert 1.0 < json.loads((tmp_path / "run" / "summary.json").read_text())["epsilon"]["user"] <= 3.0
    assert "the server included while it follows the protocol" in (tmp_path / "run" / "report.html").read_text()
    rows = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert all(row["releases"] == row["users"] and row["tokens"] == 0 for row in rows), "a sum holds no counts"
    with Ledger(tmp_path / "run" / "joint.sqlite") as ledger:
        assert {event.kind for history in ledger.histories().values() for event in history} == {"concentrated"}


@pytest.mark.parametrize("setting", ["weights=examples", "aggregator=flower.FedAvg", "privacy.masking.threshold=0.4"])
def test_what_a_secure_sum_cannot_do_is_one_sentence_and_exit_code_2(world: Any, tmp_path: Path, setting: str) -> None:
    said = call("run", "movielens", *world.settings, *SECURE, setting, "--out", tmp_path / "run")
    assert said.code == 2 and len(said.err.strip().splitlines()) == 1, said
    assert not (tmp_path / "run").exists()

"""What a round costs the server: growth with users is what each aggregator says, and sums are made without holding releases."""

import json
from pathlib import Path

import pytest
import torch

from simulations.cost import memory, suite
from simulations.cost.crowd import Shape, adapter, releases, sized
from simulations.cost.work import counted
from strategies import aggregators
from strategies.aggregators import AGGREGATORS
from strategies.tree import State, nbytes
from tests.simulations.command import call

USERS = (8, 16, 32)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_work_grows_with_users_and_faster_exactly_where_pairs_are_compared(name: str) -> None:
    built = aggregators.build(name, {})
    work, _ = suite.steps(built, suite.Size(USERS, 0), USERS, Shape(1, 4, 400 if built.pairwise else 12, 3))
    assert (suite.exponent(USERS, work) > suite.GROWTH) == built.pairwise, work
    assert 0.3 < suite.exponent(USERS, work) < 2.1


@pytest.mark.parametrize(("power", "users"), [(0.5, USERS), (1.0, (50, 100, 200, 400)), (2.0, (3, 7))])
def test_the_exponent_of_a_power_is_the_power(power: float, users: tuple[int, ...]) -> None:
    assert suite.exponent(users, [7.0 * u**power for u in users]) == pytest.approx(power)


def test_work_is_what_there_is_to_compute() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert counted(lambda: a @ b) == 3 * 4 * 5 == counted(lambda: a @ b + 1) - 2 * 15
    assert counted(lambda: torch.mv(a, b[:, 0].contiguous())) >= 12
    assert counted(lambda: torch.linalg.qr(torch.ones(7, 2))) >= 7 * 2 * 2


def test_a_release_has_the_size_that_is_asked_for_and_memory_of_its_own() -> None:
    shared: State = {}
    for name in ("fedit", "fedsvd", "scaffold", "frlora"):
        built = aggregators.build(name, {})
        shared = adapter(built, sized(built, memory.SHAPE, 3 * 2**20))
        one, two = releases(built, shared, 2)
        assert nbytes(one.update) == pytest.approx(3 * 2**20, rel=0.1)
        assert all(not torch.equal(v, two.update[n]) and v.data_ptr() != two.update[n].data_ptr() for n, v in one.update.items())
    assert [r.root for r in releases(aggregators.build("fltrust", {}), shared, 2)] == [True, False, False]


def test_a_sum_is_made_without_holding_the_releases_and_a_median_is_not() -> None:
    streams, holds = (memory.in_process(name, 40, 2**21) for name in ("fedit", "norm_clip"))
    each = streams["release"]
    assert each == pytest.approx(2**21, rel=0.1)
    assert streams["peak"] - streams["before"] < 12 * each < 40 * each < holds["peak"] - holds["before"]


def cost(**changes: object) -> suite.Cost:
    kept = {
        "linear": True,
        "pairwise": False,
        "seconds": (1.0,),
        "work": (1,),
        "exponent": 1.0,
        "growth": 1.0,
        "peak": 2**29,
        "stream_seconds": 1.0,
    }
    return suite.Cost(**(kept | {"stream_seconds": 1.0} | changes))  # type: ignore[arg-type]


def test_what_an_aggregator_does_not_say_of_itself_is_a_failure() -> None:
    found = {"good": cost(), "slow": cost(growth=1.9), "quick": cost(pairwise=True), "pairs": cost(pairwise=True, growth=1.9),
             "large": cost(peak=2**30 + 2**20), "single": cost(peak=None)}  # fmt: skip
    assert [sentence.partition(":")[0] for sentence in suite.failures(found)] == ["slow", "quick", "large"]


def test_the_command_writes_a_table_and_knows_its_names(here: Path) -> None:
    said = call("cost", "--quick", "--only", "krum", "--out", here / "cost")
    tree = json.loads((here / "cost" / "cost.json").read_text())
    assert said.code == 0 and list(tree["aggregators"]) == ["krum"] and tree["aggregators"]["krum"]["pairwise"]
    assert "| krum | pairwise |" in (here / "cost" / "cost.md").read_text() and "| krum | pairwise |" in said.out
    wrong = call("cost", "--only", "krmu", "--out", here / "other")
    assert wrong.code == 2 and not (here / "other").exists() and "unknown aggregator 'krmu' (did you mean 'krum'?)" in wrong.err


def test_a_failure_ends_the_command_with_code_1(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "run", lambda *_: {"slow": cost(growth=1.9)})
    said = call("cost", "--out", here / "cost")
    assert said.code == 1 and "failed: slow: its work grows like users^1.90, and it does not say pairwise" in said.out

"""Examples in periods: nothing is lost or seen twice, a document stays whole, and borders are where they are said to be."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data import every_period, load
from client.data.periods import of_units
from configs.errors import InputError
from configs.life import Life
from configs.scenario import Data, Fields, scenario_hash
from configs.scenario import load as scenario

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=40)


def users(path: Path, times: dict[str, list[float]]) -> Data:
    rows = [
        {"user": u, "prompt": f"w{i % 60} w{i % 7}", "label": "NY"[i % 2], "t": t}
        for u, found in times.items()
        for i, t in enumerate(found)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(name="files", path=str(path / "rows.jsonl"), task="choice", min_examples=3, fields=Fields(time="t"))


@given(SIZES, st.integers(2, 9))
def test_equal_counts_are_equal_up_to_one_unit_and_never_go_back(sizes: list[int], periods: int) -> None:
    found = of_units([0.0] * len(sizes), sizes, Life(periods=periods), (0.0, 0.0))
    assert found == sorted(found) and found[0] >= 1 and found[-1] <= periods
    for period in range(1, periods + 1):
        got = sum(size for size, at in zip(sizes, found, strict=True) if at == period)
        assert abs(got - sum(sizes) / periods) <= max(sizes)


@given(st.lists(st.floats(0, 99), min_size=2, max_size=20).map(sorted), st.integers(2, 6), st.data())
def test_by_time_a_period_depends_on_the_units_own_time_alone(times: list[float], periods: int, data: st.DataObject) -> None:
    life, span = Life(periods=periods, by="time"), (0.0, 100.0)
    found = of_units(times, [1] * len(times), life, span)
    gone = data.draw(st.integers(0, len(times) - 1))
    rest = [t for i, t in enumerate(times) if i != gone]
    assert of_units(rest, [1] * len(rest), life, span) == [p for i, p in enumerate(found) if i != gone]
    assert found == [int(t / 100 * periods) + 1 for t in times]


def test_with_equal_counts_one_example_that_is_away_moves_others() -> None:
    whole, fewer = (of_units([0.0] * n, [1] * n, Life(periods=3), (0.0, 0.0)) for n in (10, 9))
    assert whole[1:] != fewer, "which is why partition refuses them"


def test_every_example_is_in_one_period_and_earlier_ones_are_those_trained_on(tokenizer: Any, tmp_path: Path) -> None:
    data = users(tmp_path, {"a": [float(i) for i in range(30)], "b": [float(3 * i) for i in range(10)]})
    whole, found = load(data, tokenizer, 0), every_period(data, tokenizer, 0, Life(periods=3))
    for user in ("a", "b"):
        parts = [e.unit for period in found for part in period.users[user].__dict__.values() for e in part]
        assert parts == list(range(len(parts))) and len(parts) == sum(map(len, whole.users[user].__dict__.values()))
        assert all(s.train and s.test for s in (p.users[user] for p in found))
        assert [e.unit for e in found[2].earlier[user]] == [e.unit for p in found[:2] for e in p.users[user].train]
    assert [len(p.users["a"].train) for p in found] == [7, 7, 7] and found[1].counts["b"] == (1, 2)


def test_by_time_all_users_have_the_same_borders_and_who_has_nothing_sits_out(tokenizer: Any, tmp_path: Path) -> None:
    data = users(tmp_path, {"a": [0, 1, 2, 50, 51, 52, 100], "b": [0, 1, 2]})
    found = every_period(data, tokenizer, 0, Life(periods=2, by="time"))
    assert [sorted(p.users) for p in found] == [["a", "b"], ["a"]]
    assert sum(map(len, found[0].users["a"].__dict__.values())) == 3, "50 lies at the border, which is the later period's"
    later = every_period(data, tokenizer, 0, Life(periods=2, by="time", start=0, end=200))
    assert sum(map(len, later[0].users["a"].__dict__.values())) == 6
    again = load(data, tokenizer, 0, Life(periods=2, period=2, by="time"))
    assert [e.unit for e in again.users["a"].train] == [e.unit for e in found[1].users["a"].train]


def test_periods_by_time_need_time(tokenizer: Any, tmp_path: Path) -> None:
    data = users(tmp_path, {"a": [1.0] * 5})
    with pytest.raises(InputError, match="different times"):
        every_period(data, tokenizer, 0, Life(periods=2, by="time"))


def test_a_document_is_in_one_period(tokenizer: Any) -> None:
    found = every_period(Data(name="state_of_the_union", users=2, max_tokens=64, max_chunks=6), tokenizer, 0, Life(periods=3))
    for user in found[0].users:
        units = [{e.unit for part in p.users[user].__dict__.values() for e in part} for p in found if user in p.users]
        assert sum(map(len, units)) == len(set().union(*units)) > 3


HASHES = {"demo": "244e896a28e1", "results": "1d9bd85d4494", "sotu": "a53ee125e453", "movielens": "a79ee8e542e0"}


def test_without_a_life_scenarios_have_the_digits_that_they_had() -> None:
    assert {name: scenario_hash(scenario(name)) for name in HASHES} == HASHES
    assert scenario_hash(scenario("demo", ["life.periods=2"])) != HASHES["demo"]

"""The choice of users, and the splits of their examples in time."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import SOURCES, Dataset, Example, Splits, load, split
from client.data.encode import Piece
from configs.errors import InputError
from configs.scenario import Data

FEW = Data(users=6, unseen_users=3)


def table(path: Path, users: int = 30) -> Data:
    """Ten films rated by each of some users, in a file."""
    rows = [{"user": f"u{u}", "prompt": f"Film {i}. Liked:", "label": "NY"[i % 2]} for u in range(users) for i in range(10)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(name="files", path=str(path / "rows.jsonl"), task="choice", users=6, unseen_users=3)


def everything(splits: Splits) -> list[Any]:
    return [*splits.train, *splits.validation, *splits.test]


def test_users_and_unseen_users_are_as_many_as_asked_and_disjoint(tokenizer: Any, tmp_path: Path) -> None:
    dataset = load(table(tmp_path), tokenizer, 0)
    assert (len(dataset.users), len(dataset.unseen)) == (6, 3)
    assert not dataset.users.keys() & dataset.unseen.keys()


def test_zero_users_are_all_that_are_not_unseen() -> None:
    users, unseen = split.choose(dict.fromkeys("abcdef", 10), Data(unseen_users=2), seed=0)
    assert sorted(users + unseen) == list("abcdef") and len(unseen) == 2


def test_the_seed_and_nothing_else_chooses_users() -> None:
    counts = {str(i): 10 + i for i in range(100)}
    chosen = [split.choose(counts, FEW, seed) for seed in range(20)]
    assert chosen == [split.choose(dict(reversed(counts.items())), FEW, seed) for seed in range(20)]
    assert len({tuple(users) for users, _ in chosen}) == 20
    assert chosen[0] == (["20", "21", "48", "77", "81", "94"], ["10", "47", "67"])  # on every machine


def test_every_user_is_chosen_about_as_often() -> None:
    counts = dict.fromkeys(map(str, range(20)), 10)
    often = [user for seed in range(400) for user in split.choose(counts, Data(users=5), seed)[0]]
    assert all(60 < often.count(user) < 140 for user in counts)  # 100 expected, sd 8.7


def test_more_users_keep_those_chosen_and_the_unseen() -> None:
    counts = dict.fromkeys(map(str, range(50)), 10)
    few, unseen = split.choose(counts, Data(users=5, unseen_users=4), 0)
    many, same = split.choose(counts, Data(users=20, unseen_users=4), 0)
    assert set(few) < set(many) and unseen == same


def test_the_tokenizer_has_no_part_in_the_choice_of_users(tokenizer: Any, letters: Any) -> None:
    data = Data(name="shakespeare", users=5, unseen_users=2, min_examples=20)
    one, other = load(data, tokenizer, 3), load(data, letters, 3)
    assert (one.users.keys(), one.unseen.keys()) == (other.users.keys(), other.unseen.keys())


def test_a_user_with_too_few_examples_is_left_out() -> None:
    assert split.choose({"few": 9, "enough": 10}, Data(min_examples=10), 0) == (["enough"], [])


def test_min_examples_of_a_text_count_its_chunks() -> None:
    documents = [Example("", "x" * 401, 0, "a"), Example("", "x", 0, "b")]
    assert split.count(documents, "text", max_tokens=50) == 4
    assert split.count(documents, "choice", max_tokens=50) == 2
    assert split.count(documents, "text", max_tokens=50, max_chunks=1) == 2


def test_too_few_users_are_reported_with_the_numbers() -> None:
    counts = {"a": 20, "b": 20, "c": 2}
    with pytest.raises(InputError) as error:
        split.choose(counts, Data(users=2, unseen_users=1), 0)
    assert str(error.value) == (
        "data.users=2 and data.unseen_users=1 need 3 users with data.min_examples=10, but only 2 of 3 in 'movielens' "
        "have so many: ask for fewer or lower data.min_examples"
    )
    with pytest.raises(InputError, match="need 3 users"):  # somebody must be left to train
        split.choose(counts, Data(unseen_users=2), 0)


def test_equal_scenarios_give_equal_data(tokenizer: Any, tmp_path: Path) -> None:
    data = table(tmp_path)
    one, other = load(data, tokenizer, 5), load(data, tokenizer, 5)
    assert list(one.users) == list(other.users) != list(load(data, tokenizer, 6).users)
    for user, splits in one.users.items():
        pairs = zip(everything(splits), everything(other.users[user]), strict=True)
        assert all(torch.equal(a.ids, b.ids) and (a.label, a.unit) == (b.label, b.unit) for a, b in pairs)


def test_the_splits_of_movielens_follow_time(movielens: Dataset, tokenizer: Any) -> None:
    read = SOURCES["movielens"].read(Data())
    for user in ("1", "196", "405"):
        examples, splits = read[user], movielens.users[user]
        assert [tokenizer.decode(e.ids) for e in everything(splits)] == [example.prompt for example in examples]
        assert [movielens.labels[e.label] for e in everything(splits)] == [example.answer for example in examples]
        assert all(a.time <= b.time for a, b in pairwise(examples))


def test_the_splits_have_the_shares_asked_for(movielens: Dataset) -> None:
    for splits in movielens.users.values():
        total = len(everything(splits))
        assert abs(len(splits.train) - 0.7 * total) <= 0.5 + 1e-9
        assert abs(len(splits.train) + len(splits.validation) - 0.8 * total) <= 1
        assert len(splits.validation) > 0 and len(splits.test) > 0


def pieces(examples: Sequence[Example], each: int = 1) -> list[list[Piece]]:
    return [[Piece(torch.tensor([int(e.time), at]), 1, -1) for at in range(each)] for e in examples]


@given(
    units=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=12),
    train=st.floats(0.05, 0.9),
    share=st.floats(0, 0.9),
    keep=st.integers(0, 30),
)
def test_no_split_leaks_later_examples_or_parts_of_a_unit(units: list[tuple[int, int]], train: float, share: float, keep: int) -> None:
    data = Data(train=train, validation=share * (1 - train) * 0.99, max_examples=keep)
    examples = [Example("", "", time, str(at)) for at, (time, size) in enumerate(units) for _ in range(size)]
    ordered = split.in_order(examples)
    if len(ordered) < 2 or keep == 1:
        with pytest.raises(InputError, match="needs 2"):
            split.split("u", ordered, pieces(ordered), data)
        return
    splits = split.split("u", ordered, pieces(ordered), data)
    kept = [int(e.ids[0]) for e in everything(splits)]
    assert kept == sorted(time for time, size in units for _ in range(size))[-keep:]  # so train <= validation <= test
    assert splits.train and splits.test
    sides = [{e.unit for e in side} for side in (splits.train, splits.validation, splits.test)]
    numbers = [e.unit for e in everything(splits)]
    assert numbers == sorted(numbers) and set(numbers) == set(range(len(set(numbers))))
    if not keep:
        assert len(set(numbers)) == len(units)
    if len(set(numbers)) > 1:
        assert not sides[0] & sides[1] and not sides[1] & sides[2] and not sides[0] & sides[2]
    if data.validation > 0 and len(set(numbers)) > 2:
        assert splits.validation


def test_ties_in_time_keep_the_order_of_the_file() -> None:
    examples = [Example(str(at), "", 5.0, str(at)) for at in range(20)]
    assert split.in_order(examples) == examples


def test_a_unit_stands_as_a_whole_at_the_time_of_its_last_example() -> None:
    a, b, c = Example("", "a", 1, "talk"), Example("", "b", 2, "other"), Example("", "c", 3, "talk")
    assert split.in_order([c, b, a]) == [b, a, c]


def test_chunks_of_one_address_lie_on_one_side(presidents: Dataset) -> None:
    for splits in presidents.users.values():
        units = [{e.unit for e in side} for side in (splits.train, splits.validation, splits.test)]
        if len(set.union(*units)) > 1:
            assert not units[0] & units[2] and not units[0] & units[1] and not units[1] & units[2]
            assert max(units[0]) < min(units[2])


def test_a_long_text_keeps_so_many_chunks_evenly_spread() -> None:
    assert [split.spread(range(8), most) for most in (3, 4, 8, 9)] == [[0, 2, 5], [0, 2, 4, 6], range(8), range(8)]
    assert split.spread(range(8), 0) == range(8)


def test_a_user_with_one_document_is_split_between_its_chunks() -> None:
    examples = [Example("", "", 0, "only")]
    splits = split.split("u", examples, pieces(examples, each=10), Data())
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [7, 1, 2]
    assert [int(e.ids[1]) for e in everything(splits)] == list(range(10))


def test_only_the_latest_examples_are_kept(movielens: Dataset, tokenizer: Any) -> None:
    dataset = load(Data(max_examples=15, users=5), tokenizer, 0)
    for user, splits in dataset.users.items():
        latest = everything(movielens.users[user])[-15:]
        assert [e.ids.tolist() for e in everything(splits)] == [e.ids.tolist() for e in latest]
        assert [e.unit for e in everything(splits)] == list(range(len(latest)))


def test_a_user_left_with_one_example_is_reported() -> None:
    examples = [Example("", "", time, str(time)) for time in range(10)]
    with pytest.raises(InputError, match=r"user 'u' has 1 example\(s\) .* raise data.min_examples or data.max_examples"):
        split.split("u", examples, pieces(examples), Data(max_examples=1))

"""The built-in sources, the choice of users, the splits and the encoding of the three tasks."""

import dataclasses
import gzip
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from client.base import embedded_path
from client.data import SOURCES, Dataset, Example, Splits, load, split
from client.data.encode import Piece, encode, label_ids
from configs.errors import InputError
from configs.scenario import Data

FEW = Data(users=6, unseen_users=3)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(embedded_path())


@pytest.fixture(scope="module")
def letters() -> Any:
    """A tokenizer with a token per byte that opens every text with BOS."""
    vocabulary = {symbol: i for i, symbol in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """A tokenizer that writes blanks as its own mark and puts one before every text, as Llama 2's does."""
    words = ["<unk>", "▁", "a", "▁a", "▁Yes", "▁No", "Y", "e", "s", "N", "o", "Ye", "Yes", "No"]
    merges = [("▁", "a"), ("Y", "e"), ("Ye", "s"), ("▁", "Yes"), ("N", "o"), ("▁", "No")]
    core = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


@pytest.fixture(scope="module")
def movielens(tokenizer: Any) -> Dataset:
    return load(Data(), tokenizer, seed=0)


@pytest.fixture(scope="module")
def presidents(tokenizer: Any) -> Dataset:
    return load(Data(name="state_of_the_union", users=4), tokenizer, seed=0)


def table(path: Path, users: int = 30) -> Data:
    """Ten films rated by each of some users, in a file."""
    rows = [{"user": f"u{u}", "prompt": f"Film {i}. Liked:", "label": "NY"[i % 2]} for u in range(users) for i in range(10)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(name="files", path=str(path / "rows.jsonl"), task="choice", users=6, unseen_users=3)


def everything(splits: Splits) -> list[Any]:
    return [*splits.train, *splits.validation, *splits.test]


def one(text: str, answer: str, task: str, tokenizer: Any, max_tokens: int = 128) -> Piece:
    ((piece,),) = encode([Example(text, answer, 0, "0")], tokenizer, task, ("Yes", "No"), max_tokens)
    return piece


# Sources


def test_every_user_and_rating_of_movielens_is_there(movielens: Dataset) -> None:
    assert len(movielens.users) == 943
    assert sum(len(everything(splits)) for splits in movielens.users.values()) == 100_000


def test_films_are_named_as_people_name_them() -> None:
    prompts = {example.prompt for found in SOURCES["movielens"].read(Data()).values() for example in found}
    assert "Toy Story (1995). Animation, Children's, Comedy. Liked:" in prompts
    assert "The Usual Suspects (1995). Crime, Thriller. Liked:" in prompts
    assert "The Horseman on the Roof (1995). Drama. Liked:" in prompts
    assert not [prompt for prompt in prompts if "unknown" in prompt]


def test_a_film_is_liked_from_four_stars_on() -> None:
    read = SOURCES["movielens"].read(Data())
    found = {(user, example.unit): example.answer for user, examples in read.items() for example in examples}
    assert found["196", "242"] == "No"  # three stars
    assert found["298", "474"] == "Yes"  # four stars


def test_labels_of_the_scenario_replace_those_of_movielens(tokenizer: Any) -> None:
    dataset = load(dataclasses.replace(FEW, labels=("Good", "Bad")), tokenizer, 0)
    assert dataset.labels == ("Good", "Bad")
    assert dataset.label_ids == tuple(tokenizer(f" {label}")["input_ids"][0] for label in dataset.labels)
    with pytest.raises(InputError, match=r"data.labels must be two for 'movielens'"):
        load(dataclasses.replace(FEW, labels=("a", "b", "c")), tokenizer, 0)


def test_a_president_is_a_user_and_an_address_a_unit() -> None:
    read = SOURCES["state_of_the_union"].read(Data())
    assert len(read) == 45
    washington = read["washington"]
    assert [example.unit for example in washington][:2] == ["1790-Washington-1", "1790-Washington-2"]
    assert washington[0].time < washington[1].time
    assert washington[0].answer.startswith("Fellow-Citizens of the Senate")


def test_speakers_of_two_plays_are_two_users_and_say_no_stage_directions() -> None:
    read = SOURCES["shakespeare"].read(Data())
    assert sum(user.endswith(".first-lord") for user in read) > 1
    words = "\n".join(example.answer for found in read.values() for example in found)
    assert "Enter PAGE" not in words
    assert not set("*\\[") & set(words)
    shallow = read["the-merry-wives-of-windsor.shallow"]
    assert shallow[0].answer.startswith("Sir Hugh, persuade me not; I will make a Star-\nchamber matter of it")
    assert "\n\nAy, cousin Slender, and 'Custalourum." in shallow[0].answer


ENTRY = """{package} ({version}) unstable; urgency=medium

  [ Somebody Else ]
  * {text}, thanks to a friend <friend@example.org>

 -- Jane Doe <jane@example.org>  Thu, {day:02d} May 2023 17:54:35 +0200

"""


def write_changelogs(folder: Path, names: Sequence[str] = ("one", "two"), entries: int = 12) -> None:
    days = range(entries, 0, -1)  # the newest entry stands first
    text = "".join(ENTRY.format(package="p", version=day, text=f"Change {day}", day=day) for day in days)
    for name in names:
        with gzip.open(folder / f"{name}.gz", "wt") as file:
            file.write(text)


def test_debian_maintainers_go_by_a_pseudonym_and_their_entries_by_date(tmp_path: Path) -> None:
    write_changelogs(tmp_path)
    with gzip.open(tmp_path / "upstream.gz", "wt") as file:
        file.write("Version 1.2\n\n * no changelog of Debian's\n")
    read = SOURCES["debian_changelogs"].read(Data(name="debian_changelogs", path=str(tmp_path)))
    ((user, examples),) = read.items()
    assert user.startswith("maintainer-") and "jane" not in user.lower()
    texts = [example.answer for example in split.in_order(examples)]
    assert texts == [f"* Change {day}, thanks to a friend" for day in range(1, 13)]  # each once, no names, no trailer


def test_debian_without_changelogs_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no Debian changelogs \(\*\.gz\) are in .*set data.path"):
        SOURCES["debian_changelogs"].read(Data(path=str(tmp_path)))
    (tmp_path / "broken.gz").write_text("this is not gzip")
    with pytest.raises(InputError, match=r"changelog '.*broken\.gz' cannot be unpacked"):
        SOURCES["debian_changelogs"].read(Data(path=str(tmp_path)))


def test_an_unknown_source_gets_the_nearest_name(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"unknown data 'movilens' \(did you mean 'movielens'\?\)"):
        load(Data(name="movilens"), tokenizer, 0)


def test_a_source_refuses_a_task_that_it_is_not_made_for(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"data.task must be text for data.name 'shakespeare', got 'choice'"):
        load(Data(name="shakespeare", task="choice"), tokenizer, 0)


def test_a_choice_can_be_asked_as_an_answer(tokenizer: Any) -> None:
    dataset = load(Data(users=1, task="answer"), tokenizer, 0)
    piece = next(iter(dataset.users.values())).train[0]
    assert tokenizer.decode(piece.ids[piece.start :]) in (f" Yes{tokenizer.eos_token}", f" No{tokenizer.eos_token}")
    assert (dataset.labels, dataset.label_ids, piece.label) == ((), (), -1)


# Choice of users


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


# Splits


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


# Encoding


def test_equal_films_share_one_tensor(movielens: Dataset) -> None:
    tensors = {id(e.ids) for splits in movielens.users.values() for e in everything(splits)}
    assert len(tensors) == 1664  # of 1682 films some have the same title, year and genres


def test_a_choice_is_predicted_after_its_prompt_with_different_label_tokens(movielens: Dataset, tokenizer: Any) -> None:
    assert (movielens.task, movielens.labels, movielens.unit) == ("choice", ("Yes", "No"), "one rating")
    assert [tokenizer.decode([token]) for token in movielens.label_ids] == [" Yes", " No"]
    for splits in movielens.users.values():
        assert all(e.start == len(e.ids) and e.label in (0, 1) for e in everything(splits))
    assert max(len(e.ids) for splits in movielens.users.values() for e in splits.train) <= 40  # prompts are short


def test_a_long_prompt_of_a_choice_keeps_its_end(tokenizer: Any) -> None:
    long = "word " * 100 + "the end:"
    piece = one(long, "No", "choice", tokenizer, max_tokens=6)
    assert piece.ids.tolist() == tokenizer(long)["input_ids"][-6:]
    assert (piece.start, piece.label) == (6, 1)


def test_labels_that_begin_with_the_same_token_are_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"data.labels 'New York' and 'New Jersey' begin with the same token"):
        label_ids(tokenizer, ("New York", "New Jersey", "Ohio"))
    with pytest.raises(InputError, match="'New' and 'New York' begin with the same token"):
        label_ids(tokenizer, ("New", "New York"))
    with pytest.raises(InputError, match="'Yes' and 'Yes' begin with the same token"):
        label_ids(tokenizer, ("No", "Yes", "Yes"))


def test_one_label_is_no_choice(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"data.labels must be two or more for a choice, got \['Yes'\]"):
        label_ids(tokenizer, ("Yes",))


def test_what_all_labels_begin_with_belongs_to_the_prompt(tokenizer: Any) -> None:
    labels = ("1", "2", "5")
    assert [tokenizer.decode([token]) for token in label_ids(tokenizer, labels)] == ["1", "2", "5"]
    ((piece,),) = encode([Example("Stars:", "5", 0, "0")], tokenizer, "choice", labels, 128)
    assert tokenizer.decode(piece.ids) == "Stars: " and piece.start == len(piece.ids)


def test_labels_are_the_tokens_that_follow_other_text(sentencepiece: Any) -> None:
    assert sentencepiece(" Yes")["input_ids"][0] == sentencepiece(" No")["input_ids"][0]  # the tokenizer's own blank
    assert sentencepiece.convert_ids_to_tokens(label_ids(sentencepiece, ("Yes", "No"))) == ["▁Yes", "▁No"]
    assert sentencepiece.convert_ids_to_tokens(one("a", "No", "choice", sentencepiece).ids.tolist()) == ["▁a"]


def test_an_answer_follows_its_prompt_and_ends(tokenizer: Any) -> None:
    piece = one("Capital of France?", "Paris", "answer", tokenizer)
    assert piece.ids.tolist() == [*tokenizer("Capital of France? Paris")["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.decode(piece.ids[piece.start :]) == f" Paris{tokenizer.eos_token}"
    assert one("France? ", "Paris", "answer", tokenizer).ids.tolist() == one("France?", "Paris", "answer", tokenizer).ids.tolist()
    after_newline = one("France?\n", "Paris", "answer", tokenizer)
    assert tokenizer.decode(after_newline.ids[after_newline.start :]) == f"Paris{tokenizer.eos_token}"


def test_a_long_example_loses_the_beginning_of_its_prompt_and_keeps_its_answer(tokenizer: Any, letters: Any) -> None:
    piece = one("word " * 50 + "last:", "Paris is the answer", "answer", tokenizer, max_tokens=10)
    assert len(piece.ids) == 10
    assert tokenizer.decode(piece.ids[piece.start :]) == f" Paris is the answer{tokenizer.eos_token}"
    assert tokenizer.decode(piece.ids[: piece.start]).endswith(" last:")
    opened = one("abcdefgh", "xyz", "answer", letters, max_tokens=8)
    assert letters.decode(opened.ids) == "<s>gh xyz</s>" and opened.start == 3


def test_an_answer_longer_than_the_limit_is_cut_at_its_end(tokenizer: Any) -> None:
    piece = one("Say:", "one two three four five six", "answer", tokenizer, max_tokens=4)
    assert tokenizer.decode(piece.ids) == ": one two three" and piece.start == 1


def test_an_answer_without_a_prompt_has_something_to_be_predicted_from(tokenizer: Any, letters: Any) -> None:
    piece = one("", "Paris", "answer", tokenizer)
    assert piece.start == 1 and tokenizer.decode(piece.ids[1:]) == f"Paris{tokenizer.eos_token}"
    assert letters.decode(one("", "P", "answer", letters).ids) == "<s>P</s>"


def test_the_opening_token_stands_where_the_tokenizer_puts_it(letters: Any) -> None:
    assert one("ab", "Yes", "choice", letters).ids.tolist() == letters("ab ")["input_ids"]
    assert letters.decode(one("", "ab", "text", letters).ids) == "<s>ab"
    ((first, second),) = encode([Example("", "abcdefgh", 0, "0")], letters, "text", (), 5)
    assert [letters.decode(first.ids), letters.decode(second.ids)] == ["<s>abcd", "<s>efgh"]


def test_a_text_is_cut_in_consecutive_chunks(tokenizer: Any) -> None:
    text = SOURCES["state_of_the_union"].read(Data())["washington"][0].answer
    (chunks,) = encode([Example("", text, 0, "0")], tokenizer, "text", (), 100)
    joined = [token for chunk in chunks for token in chunk.ids.tolist()]
    whole = tokenizer(text)["input_ids"]
    assert joined == whole[: len(joined)] and len(whole) - len(joined) < 8
    assert {len(chunk.ids) for chunk in chunks[:-1]} == {100}
    assert {(chunk.start, chunk.label, chunk.ids.dtype) for chunk in chunks} == {(1, -1, torch.int64)}


@pytest.mark.parametrize(("length", "lengths"), [(27, [20]), (28, [20, 8]), (7, [7]), (1, [])])
def test_a_short_chunk_is_dropped_unless_it_is_the_only_one(length: int, lengths: list[int], tokenizer: Any) -> None:
    text = " a" * length
    (chunks,) = encode([Example("", text, 0, "0")], tokenizer, "text", (), 20)
    assert [len(chunk.ids) for chunk in chunks] == lengths


def test_chunks_may_be_shorter_than_eight_tokens_where_the_limit_is(tokenizer: Any) -> None:
    (chunks,) = encode([Example("", " a" * 10, 0, "0")], tokenizer, "text", (), 4)
    assert [len(chunk.ids) for chunk in chunks] == [4, 4]

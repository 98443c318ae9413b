"""The encoding of the three tasks."""

from typing import Any

import pytest
import torch

from client.data import SOURCES, Dataset, Example, Splits
from client.data.encode import Piece, encode, label_ids
from configs.errors import InputError
from configs.scenario import Data


def everything(splits: Splits) -> list[Any]:
    return [*splits.train, *splits.validation, *splits.test]


def one(text: str, answer: str, task: str, tokenizer: Any, max_tokens: int = 128) -> Piece:
    ((piece,),) = encode([Example(text, answer, 0, "0")], tokenizer, task, ("Yes", "No"), max_tokens)
    return piece


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

"""Text -> tokens, for the three tasks.

A token that opens a sequence (BOS) is put first wherever the tokenizer itself would put it. Text is tokenized in one
batch, equal texts once.
"""

import os.path
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch

from client.data.types import Example
from configs.errors import InputError

SHORTEST = 8  # tokens of a chunk that is worth a row of a batch


class Piece(NamedTuple):
    """What becomes one `Encoded` once its privacy unit has a number."""

    ids: torch.Tensor
    start: int
    label: int


def encode(examples: Sequence[Example], tokenizer: Any, task: str, labels: Sequence[str], max_tokens: int) -> list[list[Piece]]:
    """Return for each example its pieces of at most ``max_tokens`` tokens.

    text
        consecutive chunks of the answer, each with the loss on all but its first token; a chunk of fewer than 8 tokens
        is dropped unless it is the document's only one
    answer
        prompt, answer, end of text; if too long the prompt loses its beginning, and where that is not enough the
        answer its end
    choice
        the prompt, which loses its beginning if too long; equal prompts share one tensor
    """
    if task == "text":
        return _texts(examples, tokenizer, max_tokens)
    if task == "answer":
        return _answers(examples, tokenizer, max_tokens)
    return _choices(examples, tokenizer, labels, max_tokens)


def label_ids(tokenizer: Any, labels: Sequence[str]) -> tuple[int, ...]:
    """Return the token that stands for each label after a prompt: the first in which the labels differ."""
    return _label_tokens(tokenizer, labels)[1]


def _texts(examples: Sequence[Example], tokenizer: Any, max_tokens: int) -> list[list[Piece]]:
    lead = _lead(tokenizer)
    room = max_tokens - len(lead)
    tokens = _tokens(tokenizer, (example.answer for example in examples))

    def chunks(ids: list[int]) -> list[Piece]:
        parts = [ids[at : at + room] for at in range(0, len(ids), room)]
        kept = [part for part in parts if len(part) >= min(SHORTEST, room)] or parts[:1]
        return [Piece(torch.tensor(lead + part), 1, -1) for part in kept if len(lead + part) > 1]

    return [chunks(tokens[example.answer]) for example in examples]


def _answers(examples: Sequence[Example], tokenizer: Any, max_tokens: int) -> list[list[Piece]]:
    lead = _lead(tokenizer)
    pairs = [_joint(example.prompt, example.answer) for example in examples]
    prompts = _tokens(tokenizer, (prompt for prompt, _ in pairs))
    answers = _continuations(tokenizer, (answer for _, answer in pairs))
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def piece(prompt: str, answer: str) -> Piece:
        tail = (answers[answer] + end)[: max_tokens - 1]  # one token at least must stand before the first predicted one
        head = _context(prompts[prompt], lead, max_tokens - len(tail), tokenizer)
        return Piece(torch.tensor(head + tail), len(head), -1)

    return [[piece(*pair)] for pair in pairs]


def _choices(examples: Sequence[Example], tokenizer: Any, labels: Sequence[str], max_tokens: int) -> list[list[Piece]]:
    lead, index = _lead(tokenizer), {label: at for at, label in enumerate(labels)}
    common = _label_tokens(tokenizer, labels)[0][: max_tokens - 1]
    prompts = {
        prompt: torch.tensor(_context(ids, lead, max_tokens - len(common), tokenizer) + common)
        for prompt, ids in _tokens(tokenizer, (example.prompt.rstrip() for example in examples)).items()
    }
    found = ((prompts[example.prompt.rstrip()], index[example.answer]) for example in examples)
    return [[Piece(ids, len(ids), label)] for ids, label in found]


def _label_tokens(tokenizer: Any, labels: Sequence[str]) -> tuple[list[int], tuple[int, ...]]:
    """Return the tokens that all labels begin with, and each label's next one.

    Tokenizers that split digits write " 1" and " 2" as a blank and a digit: the blank then belongs to the prompt.
    """
    if len(labels) < 2:
        raise InputError(f"data.labels must be two or more for a choice, got {list(labels)}")
    found = _continuations(tokenizer, (f" {label}" for label in labels))
    tokens = [found[f" {label}"] for label in labels]
    common = list(os.path.commonprefix(tokens))
    nexts = [ids[len(common) : len(common) + 1] for ids in tokens]  # empty where a label is the beginning of all others
    for (label, mine), (other, its) in combinations(zip(labels, nexts, strict=True), 2):
        if not mine or not its or mine == its:
            raise InputError(f"data.labels '{label}' and '{other}' begin with the same token and cannot be told apart")
    return common, tuple(token for (token,) in nexts)


def _lead(tokenizer: Any) -> list[int]:
    """Return the token that the tokenizer puts before every text, if it does."""
    first = tokenizer("")["input_ids"][:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


def _context(prompt: list[int], lead: list[int], room: int, tokenizer: Any) -> list[int]:
    """Cut a prompt from the left to ``room`` tokens; something must stand even where there is no prompt."""
    kept = lead + prompt[max(0, len(prompt) + len(lead) - room) :]
    return kept or [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]


def _joint(prompt: str, answer: str) -> tuple[str, str]:
    """Put the blank between prompt and answer at the answer, where tokenizers expect it."""
    bare = prompt.rstrip(" ")
    if bare and not bare[-1].isspace() and not answer[:1].isspace():
        answer = f" {answer}"
    return bare, answer


def _continuations(tokenizer: Any, texts: Iterable[str]) -> dict[str, list[int]]:
    """Tokenize texts as they are after other text: SentencePiece would put a blank of its own before them."""
    texts = list(dict.fromkeys(texts))
    found = _tokens(tokenizer, [*texts, "a", *(f"a{text}" for text in texts)])
    before = found["a"]
    joint = {text: found[f"a{text}"] for text in texts if text[:1].isspace()}
    return {text: joint[text][len(before) :] if joint.get(text, [])[: len(before)] == before else found[text] for text in texts}


def _tokens(tokenizer: Any, texts: Iterable[str]) -> dict[str, list[int]]:
    """Tokenize each different text once, without special tokens."""
    texts = list(dict.fromkeys(texts))
    if not texts:
        return {}
    return dict(zip(texts, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], strict=True))

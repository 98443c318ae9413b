"""Tokenizers of three kinds, and two of the built-in data sets."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from client.base import embedded_path
from client.data import Dataset, load
from configs.scenario import Data


@pytest.fixture(scope="package")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(embedded_path())


@pytest.fixture(scope="package")
def letters() -> Any:
    """A tokenizer with a token per byte that opens every text with BOS."""
    vocabulary = {symbol: i for i, symbol in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="package")
def sentencepiece() -> Any:
    """A tokenizer that writes blanks as its own mark and puts one before every text, as Llama 2's does."""
    words = ["<unk>", "▁", "a", "▁a", "▁Yes", "▁No", "Y", "e", "s", "N", "o", "Ye", "Yes", "No"]
    merges = [("▁", "a"), ("Y", "e"), ("Ye", "s"), ("▁", "Yes"), ("N", "o"), ("▁", "No")]
    core = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


@pytest.fixture(scope="package")
def movielens(tokenizer: Any) -> Dataset:
    return load(Data(), tokenizer, seed=0)


@pytest.fixture(scope="package")
def presidents(tokenizer: Any) -> Dataset:
    return load(Data(name="state_of_the_union", users=4), tokenizer, seed=0)

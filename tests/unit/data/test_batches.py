"""Tests of tokenization and batching: padding, attention masks, and each example exactly once."""

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fedsvd.data import collate, eval_batches, tokenize
from fedsvd.models.loading import load_tokenizer

TEXTS = ["Dull.", "A film of rare and quiet beauty that stays with you.", "Fine, but long.", "No"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("embedded:minilm")


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_dict({"text": TEXTS, "label": [0, 1, 1, 0]})


def test_tokenize_uses_the_models_vocabulary_without_padding(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    encoded = tokenize(dataset, tokenizer, max_length=64)
    assert [tokenizer.decode(ids) for ids in encoded["input_ids"]] == [f"[CLS] {text.lower()} [SEP]" for text in TEXTS]
    assert list(encoded["labels"]) == [0, 1, 1, 0]


def test_truncated_text_keeps_its_end_token(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = tokenize(dataset, tokenizer, max_length=6)
    assert [len(ids) for ids in encoded["input_ids"]] == [4, 6, 6, 3]
    assert {ids[-1] for ids in encoded["input_ids"]} == {tokenizer.sep_token_id}


def test_tokenizing_prints_nothing(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, capfd: pytest.CaptureFixture[str]
) -> None:
    encoded = tokenize(dataset, tokenizer, max_length=64)
    list(eval_batches(encoded, 2, tokenizer))
    assert capfd.readouterr() == ("", "")


def test_collate_pads_to_the_longest_example_and_masks_padding(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    encoded = tokenize(dataset, tokenizer, max_length=64)
    batch = collate([encoded[0], encoded[3]], tokenizer)
    short = encoded[3]["input_ids"]
    assert batch["input_ids"].tolist() == [encoded[0]["input_ids"], [*short, tokenizer.pad_token_id]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert torch.equal(batch["labels"], torch.tensor([0, 0]))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_eval_batches_yield_each_example_once(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    encoded = tokenize(dataset, tokenizer, max_length=64)
    examples = []
    for batch in eval_batches(encoded, batch_size, tokenizer):
        assert len(batch["labels"]) <= batch_size
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            examples.append((ids[mask.bool()].tolist(), label.item()))
    assert sorted(examples) == sorted((row["input_ids"], row["labels"]) for row in encoded)


def test_eval_batches_group_texts_of_similar_length(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = tokenize(dataset, tokenizer, max_length=64)
    assert [batch["input_ids"].shape[1] for batch in eval_batches(encoded, 2, tokenizer)] == [4, 14]

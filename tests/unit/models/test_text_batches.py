"""Batches of public texts."""

import torch

from fedsvd.models.loading import load_tokenizer
from fedsvd.models.text_batches import text_batches


def test_texts_are_padded_on_the_right_whatever_the_tokenizer_prefers() -> None:
    tokenizer = load_tokenizer("embedded:tiny-llama")
    tokenizer.padding_side = "left"

    [batch] = text_batches(["a fine film", "dull"], tokenizer, 16, torch.device("cpu"))

    # [CLS] dull [SEP], then padding, as in the clients' batches.
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 3:].tolist() == [tokenizer.pad_token_id] * 2

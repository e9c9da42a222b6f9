"""Batches of public texts, for statistics that do not depend on the order of the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_BATCH_SIZE = 64


def text_batches(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Yield padded batches of texts, sorted by length so that they need little padding.

    Args:
        texts: The texts.
        tokenizer: The model's tokenizer.
        max_length: Longer texts are truncated to so many tokens.
        device: Device of the batches.
    """
    ordered = sorted(texts, key=lambda text: (len(text), text))
    for start in range(0, len(ordered), _BATCH_SIZE):
        yield dict(
            tokenizer(
                ordered[start : start + _BATCH_SIZE],
                padding=True,
                # As in the clients' batches; caches of frozen layers do not recognize texts padded on the left.
                padding_side="right",
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            ).to(device)
        )

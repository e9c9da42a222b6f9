"""Made-up texts for checks of a model, whose outcome must not depend on private texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_LENGTH = 16


def probe_texts(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return two made-up texts, the second one with padding, as arguments of a model's forward pass.

    Args:
        model: The model, or a wrapper around it.
        inputs: Arguments of a forward pass, with an ``attention_mask``. Only their names, types and device are read.

    Returns:
        The same arguments, shape (2, 16).
    """
    network = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    num_tokens = len(network.get_input_embeddings().get_parameter("weight"))
    texts = {name: tensor.new_zeros(2, _LENGTH) for name, tensor in inputs.items()}
    # Special tokens are at the start or the end of a vocabulary.
    tokens = (num_tokens // 2 + torch.arange(2 * _LENGTH).view(2, _LENGTH)) % num_tokens
    texts["input_ids"] = tokens.to(inputs["input_ids"])
    texts["attention_mask"][0] = 1
    texts["attention_mask"][1, : _LENGTH // 2] = 1
    if network.config.pad_token_id is not None:
        # Some classifiers find the last token by it, and not by the mask.
        texts["input_ids"][1, _LENGTH // 2 :] = network.config.pad_token_id
    return texts

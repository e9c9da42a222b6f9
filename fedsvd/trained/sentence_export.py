"""Export of a `PooledClassifier` as a sentence-transformers model whose ``encode`` returns the logits.

The modules are the transformer, its pooling, and layer normalization without parameters, written as centering, scaling
to unit length and a factor √d; the last module is one linear layer that holds the factor, the standardization and the
head. The files are written without the package, which is needed only to load them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedsvd.models.pooled import PooledClassifier

_POOLING_FLAGS = {"first": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
_MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize"),
            ("4_Dense", "Dense"))  # fmt: skip


@torch.no_grad()
def save_sentence_transformer(model: PooledClassifier, folder: Path, max_length: int) -> None:
    """Write the directory, except for the tokenizer.

    Args:
        model: The classifier, without adapters, in float32.
        folder: An existing directory.
        max_length: Longer texts are truncated to so many tokens.
    """
    width = model.classifier.in_features
    model.backbone.save_pretrained(folder)
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(_MODULES)
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    pooling = {f"pooling_mode_{flag}": mode == model.pooling for mode, flag in _POOLING_FLAGS.items()}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling})
    _write_dense(folder / "2_Dense", torch.eye(width) - 1 / width, None)
    _write(folder / "3_Normalize" / "config.json", {})
    _write_dense(folder / "4_Dense", *_output_layer(model))


def _output_layer(model: PooledClassifier) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the linear layer from normalized, unscaled states to logits."""
    head = model.classifier
    matrix, offset = model.affine_map()
    weight = math.sqrt(head.in_features) * (head.weight @ matrix.T)
    return weight, head.bias + head.weight @ offset


def _write_dense(folder: Path, weight: Tensor, bias: Tensor | None) -> None:
    settings: Mapping[str, Any] = {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": bias is not None,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write(folder / "config.json", settings)
    tensors = {"linear.weight": weight, **({} if bias is None else {"linear.bias": bias})}
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, folder / "model.safetensors")


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

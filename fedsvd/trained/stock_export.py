"""Export of a `PooledClassifier` as a stock BERT or RoBERTa classifier of transformers with the same logits.

A stock classifier reads the first token of the last layer through a dense layer with tanh. One more transformer layer
moves the pooled states there: with zero queries and keys attention is uniform over the text's tokens, so that identity
values give every token the mean of all. Its layer normalizations have no parameters left and compute ``LN(mean(h))``.
The dense layer applies the standardization, scaled down so far that tanh is the identity up to rounding, and the last
layer's weight is scaled up in return.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from fedsvd.lora.site import PEFT_PREFIX
from fedsvd.models.embedded import quiet_transformers
from fedsvd.models.pooled import PooledClassifier

# Module names of the dense layer and the output layer, by model type.
_HEADS: Mapping[str, tuple[str, str]] = {
    "bert": ("bert.pooler.dense", "classifier"),
    "camembert": ("classifier.dense", "classifier.out_proj"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
}
# A token's own states, the residual beside the mean, vanish next to it by this factor. A power of two rounds nothing.
_MEAN_SCALE = 2.0**24
_TANH_SCALE = 2.0**-12
_TOLERANCE = 1e-3
_PROBES = (
    "Yes.",
    "The train to the coast was late again.",
    "We met on a Monday, 3 May, and agreed on most of the plan.",
)
_PROBE_LENGTH = 16


@torch.no_grad()
def to_stock(model: PooledClassifier, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | None:
    """Return a stock classifier with the same logits, float32, or None if the architecture has none.

    Args:
        model: The classifier, without adapters, in float32.
        tokenizer: The model's tokenizer.
    """
    heads = _HEADS.get(model.config.model_type)
    if heads is None or model.pooling == "last":
        return None
    config = copy.deepcopy(model.config)
    config.num_hidden_layers += 1
    config.num_labels = model.classifier.out_features
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        stock: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    base = stock.base_model
    _, unexpected = base.load_state_dict(model.backbone.state_dict(), strict=False)
    _write_pooling_layer(base.encoder.layer[-1], model.pooling == "mean")
    dense, output = (stock.get_submodule(name) for name in heads)
    matrix, offset = model.affine_map()
    # The second normalization of the layer divides by the square root.
    dense.weight.copy_(matrix.T * (_TANH_SCALE * math.sqrt(1 + config.layer_norm_eps)))
    dense.bias.copy_(offset * _TANH_SCALE)
    output.weight.copy_(model.classifier.weight / _TANH_SCALE)
    output.bias.copy_(model.classifier.bias)
    exported: PreTrainedModel = stock.eval()
    return exported if not unexpected and _agrees(exported, model, tokenizer) else None


def adapter_state(state: Mapping[str, Tensor], model: PooledClassifier, stock: PreTrainedModel) -> dict[str, Tensor]:
    """Rename and rescale a `PooledClassifier`'s adapter for its stock classifier.

    Args:
        state: The tensors of PEFT's ``adapter_model.safetensors``.
        model: The classifier that the adapter belongs to.
        stock: What `to_stock` returned for it.
    """
    dense, output = _HEADS[model.config.model_type]
    renamed = {}
    for name, tensor in state.items():
        key = name.removeprefix(PEFT_PREFIX)
        if key.startswith("classifier."):
            scaled = tensor / _TANH_SCALE if key.endswith("weight") else tensor
            renamed[f"{PEFT_PREFIX}{output}.{key.removeprefix('classifier.')}"] = scaled
        else:
            renamed[f"{PEFT_PREFIX}{stock_name(key, stock)}"] = tensor
    if dense.startswith("classifier."):
        for key, tensor in stock.get_submodule(dense).state_dict().items():
            renamed[f"{PEFT_PREFIX}{dense}.{key}"] = tensor
    return {key: tensor.contiguous().clone() for key, tensor in renamed.items()}


def stock_name(name: str, stock: PreTrainedModel) -> str:
    """Return the name in the stock classifier of a module or parameter of the backbone."""
    return f"{stock.base_model_prefix}.{name.removeprefix('backbone.')}"


def _write_pooling_layer(layer: Any, takes_mean: bool) -> None:
    identity = torch.eye(layer.attention.output.dense.weight.shape[0])
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    for linear in linears:
        linear.weight.zero_()
        linear.bias.zero_()
    if takes_mean:
        layer.attention.self.value.weight.copy_(identity)
        layer.attention.output.dense.weight.copy_(_MEAN_SCALE * identity)
    for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm):
        norm.weight.fill_(1)
        norm.bias.zero_()


def _agrees(stock: PreTrainedModel, model: PooledClassifier, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Compare both models' logits of texts of different lengths."""
    # Texts, not any token ids: standardized states of another first token than a text's are far from all data.
    found = tokenizer(list(_PROBES), padding=True, truncation=True, max_length=_PROBE_LENGTH, return_tensors="pt")
    inputs = {name: found[name] for name in ("input_ids", "attention_mask")}
    expected = model(**inputs).logits
    difference = (stock(**inputs).logits - expected).abs().max()
    return bool(difference <= _TOLERANCE * expected.abs().max().clamp(min=1e-2))

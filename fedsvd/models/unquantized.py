"""The modules of a quantized model that stay in full precision."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fedsvd.models.checkpoint_head import head_modules, whole_heads


def keep_unquantized(auto_class: Any, architecture: PreTrainedConfig, new_quantization: Any) -> None:
    """Keep the output layer of a language model, or a classifier's head, in full precision, in place.

    Args:
        auto_class: The class of transformers that loads the model.
        architecture: The checkpoint's configuration; that of its own quantization gets the head of a classifier.
        new_quantization: How bitsandbytes quantizes the checkpoint when it is loaded; None if it does not.
    """
    stored = getattr(architecture, "quantization_config", None)
    if new_quantization is not None:
        new_quantization.llm_int8_skip_modules = _output_modules(auto_class, architecture)
    elif stored is not None and auto_class is not AutoModelForCausalLM:
        # Whether a stored output layer is quantized is up to the checkpoint; a new head never is.
        values: dict[str, Any] = stored if isinstance(stored, dict) else vars(stored)
        key = "modules_to_not_convert" if "torchao" in str(values["quant_method"]) else "llm_int8_skip_modules"
        values[key] = [*(values.get(key) or ()), *_output_modules(auto_class, architecture)]


def _output_modules(auto_class: Any, architecture: PreTrainedConfig) -> list[str]:
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(architecture)
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    # Named separately: where it shares its weight with the token embeddings, it has no parameter of its own.
    return [*whole_heads(model, head_modules(model)), *(n for n, layer in model.named_modules() if layer is output)]

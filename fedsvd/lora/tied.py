"""Output layers that share their weight with the token embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel


def untie_output_layer(model: PreTrainedModel, target_modules: str | Sequence[str]) -> None:
    """Give an output layer that is going to be adapted its own weight.

    An update that is merged into a shared weight would change the token embeddings as well. ``auto`` and ``all-linear``
    do not adapt output layers.

    Args:
        model: The base model, without LoRA layers; modified in place, with its configuration.
        target_modules: ``model.target_modules``.
    """
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if isinstance(target_modules, str) or not isinstance(output, nn.Linear):
        return
    name = next(name for name, module in model.named_modules() if module is output)
    is_adapted = any(name == target or name.endswith(f".{target}") for target in target_modules)
    if is_adapted and output.weight is model.get_input_embeddings().weight:
        output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False

"""Which layers of a model get factors: named ones, those that are usual for its family, or all linear ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedsvd.errors import ModelError

# The projections of queries and values, as in the LoRA paper, of families that PEFT's own table leaves out.
_MORE_FAMILIES: Mapping[str, Sequence[str]] = {
    "distilbert": ("q_lin", "v_lin"),
    "modernbert": ("Wqkv",),
    "mpnet": ("q", "v"),
    "phi3": ("qkv_proj",),
}


def target_names(
    model: PreTrainedModel, target_modules: str | Sequence[str], head_modules: Collection[str] = ()
) -> list[str]:
    """Return the names (or name endings) of the layers that get factors.

    Args:
        model: The base model.
        target_modules: Names; ``auto``: those that are usual for the model's family (mostly the projections of queries
            and values); ``all-linear``: all linear layers but the head's and the output layer of a language model.
        head_modules: Modules that are the head.

    Raises:
        ModelError: ``auto`` for a family that is not known.
    """
    if not isinstance(target_modules, str):
        return list(target_modules)
    if target_modules == "all-linear":
        return sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(model, head_modules)})
    family = model.config.model_type
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(family) or _MORE_FAMILIES.get(family)
    if not known:
        raise ModelError(
            f"model.target_modules = auto: which layers are usual for models of type {family!r} is not known. "
            f"{type(model).__name__} has the linear layers {', '.join(linear_names(model))}: name some of them, or "
            "take all-linear."
        )
    return list(known)


def head_layers(model: PreTrainedModel, head_modules: Collection[str]) -> list[str]:
    """Return the full names of the linear layers in the head, whose endings other layers may share."""
    return [name for name, layer in model.named_modules() if _is_linear(layer) and _lies_in(name, head_modules)]


def linear_names(model: PreTrainedModel) -> list[str]:
    """Return the endings of the names of all linear layers."""
    return sorted({name.rsplit(".", 1)[-1] for name, layer in model.named_modules() if _is_linear(layer)})


def _linear_layers(model: PreTrainedModel, head_modules: Collection[str]) -> list[str]:
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [
        name
        for name, layer in model.named_modules()
        if _is_linear(layer) and layer is not output and not _lies_in(name, head_modules)
    ]


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, Conv1D))


def _lies_in(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)

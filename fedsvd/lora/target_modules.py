"""Selection of the layers to adapt: by name, by the defaults for a model family, or all linear layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedsvd.errors import ModelError

# The query and value projections, as in the LoRA paper, for model families that PEFT's table does not include.
_MORE_FAMILIES: Mapping[str, Sequence[str]] = {
    "distilbert": ("q_lin", "v_lin"),
    "modernbert": ("Wqkv",),
    "mpnet": ("q", "v"),
    "phi3": ("qkv_proj",),
}


def target_names(
    model: PreTrainedModel, target_modules: str | Sequence[str], head_modules: Collection[str] = ()
) -> list[str]:
    """Return the names (or name suffixes) of the layers to adapt.

    Args:
        model: The base model.
        target_modules: Names; ``auto`` for the defaults of the model family (mostly the query and value projections);
            ``all-linear`` for all linear layers except those of the head and the output layer of a language model.
        head_modules: Modules of the classifier head.

    Raises:
        ModelError: ``target_modules`` is ``auto`` and the model family is unknown.
    """
    if not isinstance(target_modules, str):
        return list(target_modules)
    if target_modules == "all-linear":
        return sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(model, head_modules)})
    family = model.config.model_type
    names = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(family) or _MORE_FAMILIES.get(family)
    if not names:
        raise ModelError(
            f"model.target_modules = auto is unsupported for models of type {family!r}, which have no default. "
            f"{type(model).__name__} has the linear layers {', '.join(linear_names(model))}: list some of them, or set "
            "model.target_modules=all-linear."
        )
    return list(names)


def head_layers(model: PreTrainedModel, head_modules: Collection[str]) -> list[str]:
    """Return the full names of the linear layers in the head (other layers may have the same name suffixes)."""
    return [name for name, layer in model.named_modules() if _is_linear(layer) and _lies_in(name, head_modules)]


def linear_names(model: PreTrainedModel) -> list[str]:
    """Return the name suffixes of all linear layers."""
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

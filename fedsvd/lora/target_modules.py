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
    "albert": ("query", "value"),
    "camembert": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "modernbert": ("Wqkv",),
    "mpnet": ("q", "v"),
    "phi3": ("qkv_proj",),
    "qwen2_moe": ("q_proj", "v_proj"),
    "qwen3_moe": ("q_proj", "v_proj"),
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
    if not names or isinstance(names, str):
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


def layer_numbers(model: PreTrainedModel, lora_layers: str) -> list[int] | None:
    """Return the numbers of the layers to adapt, from 0; None for all.

    Args:
        model: The base model.
        lora_layers: ``all``, or ``top_K`` for the K layers nearest the output.

    Raises:
        ModelError: The model has fewer layers, or its layers share their weights.
    """
    if lora_layers == "all":
        return None
    num_layers, num_adapted = int(model.config.num_hidden_layers), int(lora_layers.removeprefix("top_"))
    if num_adapted > num_layers:
        raise ModelError(
            f"model.lora_layers = {lora_layers!r} exceeds the {num_layers} layers of {type(model).__name__}; allowed: "
            f"all, or top_1 to top_{num_layers}."
        )
    if getattr(model.config, "num_hidden_groups", None) is not None:
        raise ModelError(
            f"model.lora_layers = {lora_layers!r} is not possible with {type(model).__name__}, whose {num_layers} "
            "layers share their weights: set model.lora_layers=all."
        )
    return list(range(num_layers - num_adapted, num_layers))


def check_linear(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Check that no layer with one of the names (or name suffixes) is of another kind, such as an embedding.

    Raises:
        ModelError: There is one.
    """
    for name, layer in model.named_modules():
        if not _is_linear(layer) and any(name == target or name.endswith(f".{target}") for target in names):
            raise ModelError(
                f"model.target_modules = {list(names)} includes {name}, which is of type {type(layer).__name__}: only "
                f"linear layers can be adapted. Choose from: {', '.join(linear_names(model))}."
            )


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

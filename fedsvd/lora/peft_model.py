"""Reading adapters from PEFT models and writing them to PEFT models."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from fedsvd.errors import ModelError
from fedsvd.lora.adapter import Adapter, Part, as_plain_lora
from fedsvd.lora.frozen_weights import merge_base
from fedsvd.lora.pretrained import cast_head_to_float32, quiet_peft
from fedsvd.lora.site import (
    PEFT_NAME,
    PEFT_PREFIX,
    CoreAndB,
    LoraSite,
    adapted_layers,
    describe_site,
    rescaled_alpha,
)
from fedsvd.lora.target_modules import check_linear, head_layers, layer_numbers, linear_names, target_names
from fedsvd.lora.tied import untie_output_layer

_TASKS = {"causal_lm": peft.TaskType.CAUSAL_LM, "token_classification": peft.TaskType.TOKEN_CLS}
_MODEL_PARTS: tuple[Part, ...] = ("A", "B", "core", "head")


def attach(
    model: PreTrainedModel,
    *,
    rank: int,
    lora_alpha: float,
    rslora: bool = False,
    target_modules: str | Sequence[str],
    task: str = "sequence_classification",
    lora_layers: str = "all",
    lora_dropout: float = 0.0,
    head_modules: Sequence[str] = (),
    core: bool = False,
) -> peft.PeftModel:
    """Add PEFT LoRA layers to a model.

    Args:
        model: The base model; modified in place, as by PEFT.
        rank: Rank r of every site.
        lora_alpha: Numerator of the scale: a site's update is ``lora_alpha / rank · B A``.
        rslora: Divide by ``√rank`` instead (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
        target_modules: Names (or name suffixes) of the linear layers to adapt, ``auto`` or ``all-linear``; see
            `fedsvd.lora.target_modules.target_names`.
        task: ``model.task``.
        lora_layers: ``all``, or ``top_K`` for the K layers nearest the output.
        lora_dropout: Dropout probability on the input of A.
        head_modules: Modules that are trained and stored with the adapter because the base checkpoint lacks them.
        core: Whether to insert an r × r matrix between A and B at every site.

    Raises:
        ModelError: No layer matches ``target_modules``, or one that is not linear; the model does not have the layers
            of ``lora_layers``; or the rank exceeds a dimension of a layer.
    """
    names, head = target_names(model, target_modules, head_modules), head_layers(model, head_modules)
    check_linear(model, names)
    untie_output_layer(model, target_modules)
    config = peft.LoraConfig(
        task_type=_TASKS.get(task, peft.TaskType.SEQ_CLS),
        r=rank,
        lora_alpha=lora_alpha,  # type: ignore[arg-type]  # PEFT says int and divides it by r
        use_rslora=rslora,
        target_modules=names,
        exclude_modules=head or None,
        layers_to_transform=layer_numbers(model, lora_layers),
        lora_dropout=lora_dropout,
        modules_to_save=list(head_modules),
    )
    adapted = _adapt(model, config, names, lora_layers)
    cast_head_to_float32(adapted)
    if core:
        for _, layer in adapted_layers(adapted):
            layer.lora_B[PEFT_NAME] = CoreAndB(layer.get_parameter(f"lora_B.{PEFT_NAME}.weight"))
    _check_rank(adapted, rank)
    return adapted


def _adapt(model: PreTrainedModel, config: peft.LoraConfig, names: Sequence[str], lora_layers: str) -> peft.PeftModel:
    try:
        with quiet_peft():
            return peft.get_peft_model(model, config)
    except ValueError as error:
        where = "" if lora_layers == "all" else f" in the layers of model.lora_layers = {lora_layers}"
        raise ModelError(
            f"model.target_modules = {names} matches no layer of {type(model).__name__}{where}; choose from its linear "
            f"layers: {', '.join(linear_names(model))}."
        ) from error


def read(model: peft.PeftModel) -> Adapter:
    """Return copies of a model's factors and head, detached and on its (first) device, without a merged base."""
    parameters = named_parts(model)
    device = next(iter(parameters["A"].values())).device
    parts = {
        part: {key: parameter.detach().clone().to(device) for key, parameter in named.items()}
        for part, named in parameters.items()
    }
    scale = {name: float(layer.scaling[PEFT_NAME]) for name, layer in adapted_layers(model)}
    return Adapter(parts["A"], parts["B"], parts["head"], scale, parts["core"])


@torch.no_grad()
def write(model: peft.PeftModel, adapter: Adapter) -> None:
    """Copy an adapter's tensors into a model, and merge its base into the original frozen weights.

    Raises:
        ModelError: The adapter's sites, head or shapes differ from the model's.
    """
    parameters = named_parts(model)
    for part in _MODEL_PARTS:
        tensors = adapter.part(part)
        if tensors.keys() != parameters[part].keys():
            unmatched = sorted(tensors.keys() ^ parameters[part].keys())
            raise ModelError(
                f"the adapter's {part} tensors do not match the model: {unmatched[:4]} are in only one of the two. Use "
                "an adapter of the same model and method."
            )
        for name, parameter in parameters[part].items():
            if tensors[name].shape != parameter.shape:
                raise ModelError(
                    f"{part} of {name} has shape {tuple(tensors[name].shape)}; the model expects "
                    f"{tuple(parameter.shape)}. Use an adapter of the same model and rank."
                )
            parameter.copy_(tensors[name])
    merge_base(model, adapter.base_left, adapter.base_right)


def lora_sites(model: nn.Module) -> dict[str, LoraSite]:
    """Return the adapted layers by site name."""
    return {name: describe_site(layer) for name, layer in adapted_layers(model)}


def named_parts(model: nn.Module) -> dict[Part, dict[str, nn.Parameter]]:
    """Return a model's factors and head by part and name, as in its `Adapter`."""
    layers = list(adapted_layers(model))
    return {
        "A": {name: layer.get_parameter(f"lora_A.{PEFT_NAME}.weight") for name, layer in layers},
        "B": {name: layer.get_parameter(f"lora_B.{PEFT_NAME}.weight") for name, layer in layers},
        "core": {
            name: layer.get_parameter(f"lora_B.{PEFT_NAME}.core.weight")
            for name, layer in layers
            if isinstance(layer.lora_B[PEFT_NAME], CoreAndB)
        },
        "head": dict(_head_parameters(model)),
    }


def set_trainable(model: peft.PeftModel, parts: Collection[Part]) -> list[nn.Parameter]:
    """Enable gradients for the given parts only, and return their parameters in a fixed order."""
    model.requires_grad_(False)
    named = named_parts(model)
    trained = [parameter for part in _MODEL_PARTS if part in parts for parameter in named[part].values()]
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def save_pretrained(model: peft.PeftModel, adapter: Adapter, folder: Path) -> None:
    """Save an adapter in PEFT's format (safetensors), for `peft.PeftModel.from_pretrained` and the original base model.

    A core is multiplied into B, and a base is stored as additional columns of B and rows of A: the same weight updates
    as LoRA of a higher rank.
    """
    write(model, adapter)
    plain = as_plain_lora(adapter)
    rank = next(iter(plain.A.values())).shape[0]
    config: Any = copy.deepcopy(model.peft_config[PEFT_NAME])
    config.inference_mode = True
    config.lora_alpha = rescaled_alpha(config.lora_alpha, config.r, rank, config.use_rslora)
    config.r = rank
    # Without embeddings, which PEFT would add for an adapted output layer.
    tensors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    state = {key: tensor for key, tensor in tensors.items() if ".core." not in key}
    for name in plain.A:
        state[f"{PEFT_PREFIX}{name}.lora_A.weight"] = plain.A[name]
        state[f"{PEFT_PREFIX}{name}.lora_B.weight"] = plain.B[name]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(str(folder))


def _check_rank(model: nn.Module, rank: int) -> None:
    sites = named_parts(model)
    for name, A in sites["A"].items():
        d_out, d_in = len(sites["B"][name]), A.shape[1]
        if rank > min(d_out, d_in):
            raise ModelError(
                f"model.rank = {rank} is invalid for layer {name} of shape {d_out}×{d_in}; allowed: 1 to "
                f"{min(d_out, d_in)}. Lower model.rank."
            )


def _head_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for key, parameter in module.get_submodule(f"modules_to_save.{PEFT_NAME}").named_parameters():
                yield f"{name.removeprefix(PEFT_PREFIX)}.{key}", parameter

"""Adapters in and out of models: the only room that knows PEFT's names."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import peft
import torch
from peft.tuners.lora import Linear
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedsvd.errors import ModelError
from fedsvd.lora.adapter import Adapter, Part, as_plain_lora
from fedsvd.lora.site import PEFT_NAME, CoreAndB, LoraSite, base_weight, describe_site
from fedsvd.lora.target_modules import head_layers, linear_names, target_names

_PEFT_PREFIX = "base_model.model."
_TASKS = {"sequence_classification": peft.TaskType.SEQ_CLS, "causal_lm": peft.TaskType.CAUSAL_LM}
_IN_MODEL: tuple[Part, ...] = ("A", "B", "core", "head")

# Weights as they were loaded, of layers into which a base has been merged.
_UNMERGED: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


def attach(
    model: PreTrainedModel,
    *,
    rank: int,
    lora_alpha: float,
    target_modules: str | Sequence[str],
    task: str = "sequence_classification",
    lora_layers: str = "all",
    lora_dropout: float = 0.0,
    head_modules: Sequence[str] = (),
    core: bool = False,
) -> peft.PeftModel:
    """Wrap a model in PEFT LoRA layers.

    Args:
        model: The base model; it is changed in place, as PEFT does.
        rank: Inner dimension r of every site.
        lora_alpha: Scale numerator: a site's update is ``lora_alpha / rank · B A``.
        target_modules: Names (or name endings) of the linear layers to adapt, ``auto`` or ``all-linear``; see
            `fedsvd.lora.target_modules.target_names`.
        task: ``sequence_classification`` or ``causal_lm``.
        lora_layers: ``all``, or ``top_K`` for the K layers nearest the output.
        lora_dropout: Dropout on the input of A.
        head_modules: Modules that are stored with the adapter because no checkpoint holds them.
        core: Put an r × r matrix between A and B at every site.

    Raises:
        ModelError: No layer matches ``target_modules``, the model has fewer layers than asked for, or the rank does not
            fit one of them.
    """
    names, head = target_names(model, target_modules, head_modules), head_layers(model, head_modules)
    config = peft.LoraConfig(
        task_type=_TASKS[task],
        r=rank,
        lora_alpha=lora_alpha,  # type: ignore[arg-type]  # PEFT says int and divides it by r
        target_modules=names,
        exclude_modules=head or None,
        layers_to_transform=_layer_numbers(model, lora_layers),
        lora_dropout=lora_dropout,
        modules_to_save=list(head_modules),
    )
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers for a name that transformers is about to rename; nothing that a user can change.
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            # GPT-2's Conv1D; PEFT finds out by itself, and says so for each layer.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
            adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(
            f"model.target_modules = {names} matches no layer of {type(model).__name__}; its linear layers are called "
            f"{', '.join(linear_names(model))}. Name one or more of these."
        ) from error
    _train_head_in_float32(adapted)
    if core:
        for _, layer in _lora_layers(adapted):
            layer.lora_B[PEFT_NAME] = CoreAndB(layer.get_parameter(f"lora_B.{PEFT_NAME}.weight"))
    sites = _named_parts(adapted)
    for name, A in sites["A"].items():
        d_out, d_in = len(sites["B"][name]), A.shape[1]
        if rank > min(d_out, d_in):
            raise ModelError(
                f"model.rank = {rank} does not fit layer {name} of shape {d_out}×{d_in}; allowed: 1 to "
                f"{min(d_out, d_in)}. Lower model.rank."
            )
    return adapted


def read(model: peft.PeftModel) -> Adapter:
    """Copy the factors and the head out of a model (detached, on the model's device); a base is not read back."""
    parts = {part: {k: p.detach().clone() for k, p in named.items()} for part, named in _named_parts(model).items()}
    scale = {name: float(layer.scaling[PEFT_NAME]) for name, layer in _lora_layers(model)}
    return Adapter(parts["A"], parts["B"], parts["head"], scale, parts["core"])


@torch.no_grad()
def write(model: peft.PeftModel, adapter: Adapter) -> None:
    """Copy an adapter's tensors into a model, and merge its base into the frozen weights as they were loaded.

    Raises:
        ModelError: The adapter's sites, head or shapes are not the model's.
    """
    parameters = _named_parts(model)
    for part in _IN_MODEL:
        given = adapter.part(part)
        if given.keys() != parameters[part].keys():
            odd = sorted(given.keys() ^ parameters[part].keys())
            raise ModelError(f"the adapter's {part} tensors do not fit the model: {odd[:4]} are on one side only.")
        for name, parameter in parameters[part].items():
            if given[name].shape != parameter.shape:
                raise ModelError(
                    f"{part} of {name} has shape {tuple(given[name].shape)}, the model wants {tuple(parameter.shape)}."
                )
            parameter.copy_(given[name])
    for name, layer in _lora_layers(model):
        _merge(layer, adapter.base_left.get(name), adapter.base_right.get(name))


def lora_sites(model: nn.Module) -> dict[str, LoraSite]:
    """Return the adapted layers by name."""
    return {name: describe_site(layer) for name, layer in _lora_layers(model)}


def frozen_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return each site's weight as it was loaded, shape (d_out, d_in): views of tensors that are kept, not copies."""
    return {name: _UNMERGED.get(layer, base_weight(layer)) for name, layer in _lora_layers(model)}


def set_trainable(model: peft.PeftModel, parts: Collection[Part]) -> list[nn.Parameter]:
    """Let gradients flow into the given parts only, and return their parameters in a fixed order."""
    model.requires_grad_(False)
    named = _named_parts(model)
    trained = [parameter for part in _IN_MODEL if part in parts for parameter in named[part].values()]
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def save_pretrained(model: peft.PeftModel, adapter: Adapter, folder: Path) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` loads onto the base model as it was (safetensors).

    A core is multiplied into B, and a base is written as further columns of B and rows of A: the same updates, as LoRA
    of a higher rank.
    """
    write(model, adapter)
    plain = as_plain_lora(adapter)
    rank = next(iter(plain.A.values())).shape[0]
    config: Any = copy.deepcopy(model.peft_config[PEFT_NAME])
    config.inference_mode = True
    config.lora_alpha = config.lora_alpha / config.r * rank
    config.r = rank
    state = {key: tensor for key, tensor in peft.get_peft_model_state_dict(model).items() if ".core." not in key}
    for name in plain.A:
        state[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = plain.A[name]
        state[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = plain.B[name]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(str(folder))


def _merge(layer: Linear, left: Tensor | None, right: Tensor | None) -> None:
    weight = base_weight(layer)
    if left is None or right is None:
        if layer in _UNMERGED:
            weight.copy_(_UNMERGED.pop(layer))
        return
    loaded = _UNMERGED.setdefault(layer, weight.clone())
    weight.copy_(torch.addmm(loaded, left.to(loaded), right.to(loaded), alpha=layer.scaling[PEFT_NAME]))


def _train_head_in_float32(model: nn.Module) -> None:
    """Let what is trained be float32 where the frozen model is not; PEFT sees to the factors by itself."""

    def to_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)

    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            head = wrapper.get_submodule(f"modules_to_save.{PEFT_NAME}")
            if any(parameter.dtype != torch.float32 for parameter in head.parameters()):
                head.float().register_forward_pre_hook(to_float32)


def _layer_numbers(model: PreTrainedModel, lora_layers: str) -> list[int] | None:
    if lora_layers == "all":
        return None
    layers, wanted = int(model.config.num_hidden_layers), int(lora_layers.removeprefix("top_"))
    if wanted > layers:
        raise ModelError(
            f"model.lora_layers = {lora_layers!r} asks for more than the {layers} layers of {type(model).__name__}; "
            f"allowed: all, or top_1 to top_{layers}."
        )
    return list(range(layers - wanted, layers))


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, Linear) and PEFT_NAME in module.lora_A:
            yield name.removeprefix(_PEFT_PREFIX), module


def _head_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for key, parameter in module.get_submodule(f"modules_to_save.{PEFT_NAME}").named_parameters():
                yield f"{name.removeprefix(_PEFT_PREFIX)}.{key}", parameter


def _named_parts(model: nn.Module) -> dict[Part, dict[str, nn.Parameter]]:
    layers = list(_lora_layers(model))
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

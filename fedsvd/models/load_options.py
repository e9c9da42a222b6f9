"""How the weights of a base model are loaded: their data type or quantization, their device, and the attention."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from fedsvd.config import ModelConfig
from fedsvd.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# bitsandbytes' block of 4-bit numbers with a common scale.
_BLOCK = 64
# A checkpoint with 8-bit weights of torchao, and the type of its quantization.
TORCHAO, _TORCHAO_TYPE = "torchao", "Int8WeightOnlyConfig"
_ADAPTABLE = ("nf4", "int8", TORCHAO)
# transformers' marks on a model for PEFT.
_MARKS = ("is_loaded_in_4bit", "is_loaded_in_8bit")


@dataclass(frozen=True)
class LoadOptions:
    """How to load a base model; for the values see `fedsvd.config.ModelConfig`.

    Attributes:
        attn_implementation: ``sdpa``, ``flash_attention_2`` or ``eager``, as in transformers; ``auto``: ``sdpa``
            where it exists, else ``eager``.
        dtype: Data type of the weights, and of the products with quantized ones.
        quantization: How the frozen linear layers are quantized: ``none``, ``nf4``, ``int8`` or ``torchao``.
        device: The device on which weights are quantized; other models are loaded on the CPU.
        device_map: ``auto``: distribute the layers over all GPUs; ``none``: one device.
    """

    attn_implementation: str = "auto"
    dtype: str = "float32"
    quantization: str = "none"
    device: str = "cpu"
    device_map: str = "none"


def load_options(config: ModelConfig, device: str = "cpu") -> LoadOptions:
    """Return the options of the ``model`` configuration group."""
    return LoadOptions(config.attn_implementation, config.dtype, config.quantization, device, config.device_map)


def loader_arguments(options: LoadOptions, architecture: PreTrainedConfig, source: str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained``.

    Args:
        options: How to load the model.
        architecture: The checkpoint's configuration.
        source: ``model.source``, for messages.

    Raises:
        ModelError: bitsandbytes is not installed, or the checkpoint is quantized in another way than the options say.
    """
    arguments: dict[str, Any] = {"dtype": DTYPES[options.dtype]}
    if options.attn_implementation == "flash_attention_2":
        _check_flash_attention(options)
    if options.attn_implementation != "auto":
        arguments["attn_implementation"] = options.attn_implementation
    is_prequantized = _check_checkpoint(getattr(architecture, "quantization_config", None), options, source)
    if options.device_map == "auto":
        _check_gpus(options)
        arguments["device_map"] = "auto"
    if options.quantization == "none":
        return arguments
    if options.quantization == TORCHAO:
        _check_torchao(is_prequantized, source)
        return {"device_map": {"": options.device}, **arguments}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization = {options.quantization} needs bitsandbytes, which is not installed. Install it with: "
            "pip install 'fedsvd[quantization]', or set model.quantization=none."
        )
    # It warns that a package with faster kernels is missing, and in each step that int8 rounds to float16 first.
    for name in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)
    if not is_prequantized:
        arguments["quantization_config"] = _quantization(options)
    return {"device_map": {"": options.device}, **arguments}


def finish_loading(model: PreTrainedModel, options: LoadOptions, source: str) -> None:
    """Make quantized layers compute the same in training and in evaluation, example by example.

    Raises:
        ModelError: bitsandbytes would compute wrong products, or the GPUs cannot hold a distributed model.
    """
    if options.device_map == "none":
        # PEFT would distribute a model with a map that names the CPU.
        vars(model).pop("hf_device_map", None)
    _check_on_gpus(getattr(model, "hf_device_map", {}), source)
    if options.quantization in ("nf4", "int8"):
        _convert_unquantized(model, DTYPES[options.dtype])
    for name, layer in model.named_modules() if options.quantization != "none" else ():
        if type(layer).__name__ == "Linear4bit" and isinstance(layer, nn.Linear):
            if options.device == "cpu" and layer.in_features % _BLOCK:
                raise ModelError(
                    f"model.quantization = nf4 is not possible on the CPU with model.source = {source!r}: {name} has "
                    f"{layer.in_features} inputs, and bitsandbytes is correct for multiples of {_BLOCK} only there. "
                    "Set model.quantization=int8 or none, or use a GPU."
                )
            # In evaluation on processors with bfloat16 instructions, it would replace the weights by rounded ones, for
            # which there is no backward pass.
            vars(layer)["support_avx512bf16_for_cpu"] = False
            # A checkpoint in 4 bits has a type of its own for products.
            vars(layer).update(compute_dtype=DTYPES[options.dtype], compute_type_is_set=True)
        if type(layer).__name__ == "Linear8bitLt":
            # Above a threshold, activations of one example would decide how those of others are rounded.
            vars(layer)["state"].threshold = 0.0
            if options.device == "cpu":
                # Its forward pass in evaluation rounds activations on a CPU; that in training does not.
                layer.register_forward_pre_hook(_stay_in_training_mode)


def _convert_unquantized(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the weights that are not quantized, which in a quantized checkpoint keep their own type, in place."""
    keep = model._keep_in_fp32_modules or ()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(part in name for part in keep):
            parameter.data = parameter.data.to(dtype)


def copy_marks(source: nn.Module, target: nn.Module) -> None:
    """Copy transformers' marks of a quantized model to a model around it, in place."""
    for mark in _MARKS:
        if getattr(source, mark, False):
            setattr(target, mark, True)


def _check_flash_attention(options: LoadOptions) -> None:
    reason = None
    if not options.device.startswith("cuda"):
        reason = f"its kernels need a CUDA device, and the device is {options.device}"
    elif importlib.util.find_spec("flash_attn") is None:
        reason = "the package flash-attn is not installed (pip install flash-attn)"
    if reason:
        raise ModelError(
            f"model.attn_implementation = flash_attention_2 is not possible: {reason}. Set "
            "model.attn_implementation=auto."
        )


def _check_gpus(options: LoadOptions) -> None:
    found = torch.cuda.device_count()
    if found < 2 or options.device != "cuda":
        raise ModelError(
            f"model.device_map = auto needs several GPUs and device=auto or cuda: torch finds {found} on this machine, "
            f"and the device is {options.device}. Set model.device_map=none."
        )


def _check_on_gpus(device_map: Mapping[str, Any], source: str) -> None:
    # accelerate loads such layers for their forward pass alone; the backward pass needs the frozen weights, too.
    elsewhere = [name for name, device in device_map.items() if str(device) in ("cpu", "disk")]
    if elsewhere:
        raise ModelError(
            f"model.source = {source!r} does not fit on the GPUs: {', '.join(elsewhere[:3])} would be on the CPU or on "
            "disk. Set model.dtype=bfloat16 or model.quantization=nf4, or use more GPUs."
        )


def _stay_in_training_mode(layer: nn.Module, args: Any) -> None:
    layer.training = True


def _quantization(options: LoadOptions) -> BitsAndBytesConfig:
    if options.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[options.dtype],
    )


def _check_checkpoint(found: Any, options: LoadOptions, source: str) -> bool:
    """Return whether the checkpoint is quantized as the options say; it may also not be quantized at all."""
    if found is None:
        return False
    values = found if isinstance(found, dict) else found.to_dict()
    kind = str(values.get("quant_method"))
    if "bitsandbytes" in kind or "bnb" in kind:
        four = "nf4" if values.get("bnb_4bit_quant_type") == "nf4" else "fp4"
        kind = four if values.get("load_in_4bit") else "int8"
    if kind == TORCHAO:
        kind = _torchao_type(values)
    if kind in _ADAPTABLE and options.quantization == kind:
        return True
    remedy = f"set model.quantization={kind}" if kind in _ADAPTABLE else "choose the unquantized checkpoint, and"
    remedy += "" if kind in _ADAPTABLE else " set model.quantization=nf4 or int8 to quantize it"
    raise ModelError(
        f"model.source = {source!r} is a checkpoint that was quantized with {kind}, and model.quantization = "
        f"{options.quantization}. Only checkpoints in nf4 and int8 of bitsandbytes and with {_TORCHAO_TYPE} of torchao "
        f"can be adapted; {remedy}."
    )


def _torchao_type(values: dict[str, Any]) -> str:
    """Return ``torchao`` if the checkpoint has 8-bit weights and plain activations, else what it has."""
    found = values.get("quant_type")
    types = {name: value.get("_type") for name, value in found.items()} if isinstance(found, dict) else {"": str(found)}
    return TORCHAO if types == {"default": _TORCHAO_TYPE} else f"torchao ({', '.join(map(str, types.values()))})"


def _check_torchao(is_prequantized: bool, source: str) -> None:
    if not is_prequantized:
        raise ModelError(
            "model.quantization = torchao needs a checkpoint that torchao has quantized, and model.source = "
            f"{source!r} is not quantized. Set model.quantization=nf4 or int8 to quantize it, or none."
        )
    if importlib.util.find_spec("torchao") is None:
        raise ModelError(
            "model.quantization = torchao needs the package torchao, which is not installed. Install it with: pip "
            "install 'fedsvd[torchao]', or choose another checkpoint."
        )

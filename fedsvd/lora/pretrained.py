"""PEFT's functions that modify a base model: without warnings about which users cannot do anything, and in float32."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import ModulesToSaveWrapper, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedsvd.lora.site import PEFT_NAME


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Suppress PEFT's warnings about its own use of transformers, inside the context."""
    with warnings.catch_warnings():
        # PEFT uses an attribute that transformers has deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        # PEFT corrects the setting for GPT-2's Conv1D itself, and warns for each layer.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
        # Exports dequantize the base before they merge, so that PEFT need not quantize it again.
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without", category=UserWarning)
        yield


def load_pretrained(base: PreTrainedModel, folder: Path) -> peft.PeftModel:
    """Add an adapter in PEFT's format to a base model; raises as `peft.PeftModel.from_pretrained`.

    Its factors and its head are float32, as in training, whatever the data type of the base model is.
    """
    with quiet_peft():
        model: peft.PeftModel = peft.PeftModel.from_pretrained(base, str(folder))
    if cast_head_to_float32(model):
        # PEFT has rounded the head to the type of the base model.
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    return model


def cast_head_to_float32(model: nn.Module) -> bool:
    """Convert the head to float32 if the frozen model has another dtype; PEFT does the same for the factors.

    Returns:
        Whether it was converted.
    """
    is_converted = False
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            head = wrapper.get_submodule(f"modules_to_save.{PEFT_NAME}")
            if any(parameter.dtype != torch.float32 for parameter in head.parameters()):
                head.float().register_forward_pre_hook(_to_float32)
                is_converted = True
    return is_converted


def _to_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)

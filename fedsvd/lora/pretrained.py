"""PEFT's functions that modify a base model, without warnings about which users cannot do anything."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
from transformers import PreTrainedModel


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
    """Add an adapter in PEFT's format to a base model; raises as `peft.PeftModel.from_pretrained`."""
    with quiet_peft():
        model: peft.PeftModel = peft.PeftModel.from_pretrained(base, str(folder))
    return model

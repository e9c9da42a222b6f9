"""What a client of these strategies does besides training."""

from __future__ import annotations

import peft
from flwr.app import ArrayRecord
from torch import nn

from fedsvd.errors import ModelError
from fedsvd.flower.arrays import SentArrays
from fedsvd.lora.frozen_weights import merge_base, quantized_sites
from fedsvd.lora.site import PEFT_NAME, PEFT_PREFIX


def train_factors(model: nn.Module, factors: str) -> None:
    """Let only the given LoRA factors be trained; other parameters are not touched.

    Args:
        model: A PEFT model, with the adapter's default name.
        factors: ``A``, ``B`` or ``AB``: what the strategy sends as ``config["lora-factors"]``.

    Raises:
        ModelError: ``factors`` has another value, or the model has no LoRA factors.

    Example:
        >>> import peft, torch
        >>> from fedsvd.flower import train_factors
        >>> model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), peft.LoraConfig(target_modules="0"))
        >>> train_factors(model, "B")
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['base_model.model.0.lora_B.default.weight']
    """
    if factors not in ("A", "B", "AB"):
        raise ModelError(
            f'factors = {factors!r} is invalid: expected "A", "B" or "AB", as in message.content["config"]'
            '["lora-factors"].'
        )
    found = False
    for name, parameter in model.named_parameters():
        for factor in ("A", "B"):
            if f".lora_{factor}.{PEFT_NAME}." in name:
                parameter.requires_grad_(factor in factors)
                found = True
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no LoRA factors of an adapter named {PEFT_NAME!r}: add them with "
            "peft.get_peft_model(model, peft.LoraConfig(...))."
        )


def load_arrays(model: peft.PeftModel, arrays: ArrayRecord) -> None:
    """Load the arrays of a message or a result into a model.

    This is `peft.set_peft_model_state_dict`, and what FedEx-LoRA adds to frozen weights. For the other methods, PEFT's
    function suffices.

    Args:
        model: A PEFT model with the layers, rank and head of the server's.
        arrays: The arrays that a strategy sends, or the arrays of its result.

    Raises:
        ModelError: The arrays do not fit the model, or it has quantized weights, to which nothing can be added.

    Example:
        >>> import peft, torch
        >>> from flwr.app import ArrayRecord
        >>> from fedsvd.flower import load_arrays
        >>> model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), peft.LoraConfig(target_modules="0"))
        >>> load_arrays(model, ArrayRecord(peft.get_peft_model_state_dict(model)))
    """
    sent = SentArrays.from_record(arrays)
    residual = {key for key in sent.state if ".lora_residual_" in key}
    plain = {key: tensor for key, tensor in sent.state.items() if key not in residual}
    try:
        unexpected: list[str] = peft.set_peft_model_state_dict(model, plain).unexpected_keys  # type: ignore[attr-defined]
    except (RuntimeError, KeyError) as error:
        raise ModelError(
            f"the arrays do not fit the model ({' '.join(str(error).split())[:200]}): use one model and one rank in "
            "the ServerApp and in all ClientApps."
        ) from error
    if unexpected:
        raise ModelError(
            f"the model has no {unexpected[0]}: use the same model and LoraConfig in the ServerApp and all ClientApps."
        )
    if residual:
        _check_not_quantized(model)
    names = {site: site.split(".lora_*")[0].removeprefix(PEFT_PREFIX) for site in sent.adapter.A}
    merge_base(
        model,
        {names[site]: left for site, left in sent.adapter.base_left.items()},
        {names[site]: right for site, right in sent.adapter.base_right.items()},
    )


def _check_not_quantized(model: nn.Module) -> None:
    for name in quantized_sites(model):
        raise ModelError(
            f"{name} has a quantized weight, to which FedEx-LoRA cannot add its residual: load the model without "
            "quantization, or use FedSVD, FFALoRA, FlexLoRA or RoLoRA."
        )

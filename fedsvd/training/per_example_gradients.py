"""Per-example gradients of LoRA factors at the cost of non-private training.

Opacus' hooks store the input and the output gradient of every trained layer and compute per-example gradients
afterwards. Here, each LoRA site is one autograd function. Its forward pass computes the frozen layer and both factors;
its backward pass computes the gradient of the input and, with one batched product, each example's gradient of B (and of
A, if it is trained). With ``u = x Aᵀ`` (T × r for an example of T positions), ``g`` the gradient of the site's output
and s its scale,

    ∂B = s · gᵀ u        ∂A = s · (g B)ᵀ x        ∂x = g W + s · (g B) A

Only u is saved for the backward pass (and x, if A is trained). With a core C between the factors, ``u Cᵀ`` replaces u,
``g B C`` replaces ``g B``, and ``∂C = s · (g B)ᵀ u``. Weights are never merged, so nothing has to be undone. If the
frozen layer is bfloat16 and the factors are float32, all products with factors are computed in float32. A quantized
layer computes its own forward pass, and its weight is dequantized for ``g W`` alone, as in bitsandbytes. The gradients
are stored in ``parameter.grad_sample``, where Opacus' optimizer expects them (its ``grad_sample_mode="no_op"``).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import peft
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional

from fedsvd.errors import PrivacyError
from fedsvd.lora.adapter import Part
from fedsvd.lora.peft_model import lora_sites, set_trainable
from fedsvd.lora.site import LoraSite
from fedsvd.privacy.grad_sample_modes import GradSampleMode, compute_grad_samples, opacus_hooks
from fedsvd.training.gradient_functions import Site, TrainedLinear, TrainedScale

logger = logging.getLogger(__name__)


def unsupported_reason(model: nn.Module) -> str | None:
    """Return why the fused path does not support a model's trained parameters, or None if it does."""
    covered: set[int] = set()
    for name, site in lora_sites(model).items():
        if site.not_plain_reason is not None:
            return f"{name} {site.not_plain_reason}"
        covered |= {id(site.A), id(site.B), id(site.core)}
    for layer in _trained_head_layers(model):
        covered |= {id(parameter) for parameter in layer.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in covered:
            return f"{name} is trained and is neither a LoRA factor nor part of a linear layer or a norm of the head"
    return None


def choose_grad_sample_mode(model: nn.Module, grad_sample_mode: str) -> GradSampleMode:
    """Return the context manager that computes a model's per-example gradients.

    If ``auto`` cannot use the fused path, a warning gives the reason once.

    Raises:
        PrivacyError: ``fused`` does not support the model, or hooks would be used with gradient checkpointing.
    """
    reason = None if grad_sample_mode == "hooks" else unsupported_reason(model)
    if grad_sample_mode == "fused" and reason:
        raise PrivacyError(f"train.grad_sample_mode = fused is not possible: {reason}. Set it to auto or hooks.")
    if reason:
        _warn_once(reason)
    if (reason or grad_sample_mode == "hooks") and _uses_checkpointing(model):
        # The hooks would run twice on each layer's input.
        raise PrivacyError(
            "model.gradient_checkpointing = true is not possible with Opacus' hooks, which this run uses "
            f"({reason or 'train.grad_sample_mode = hooks'}): set it to false, or let the run use the fused path."
        )
    return opacus_hooks if reason or grad_sample_mode == "hooks" else fused_gradients


def check_grad_sample_mode(model: peft.PeftModel, grad_sample_mode: str, parts: Collection[Part]) -> None:
    """Check, without data, that the per-example gradients of the given parts can be computed; the model is unchanged.

    Raises:
        PrivacyError: As `choose_grad_sample_mode`, or Opacus does not support a trained layer.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        set_trainable(model, parts)
        with compute_grad_samples(model, choose_grad_sample_mode(model, grad_sample_mode)):
            pass
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


def _uses_checkpointing(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@lru_cache(maxsize=64)
def _warn_once(reason: str) -> None:
    logger.warning("per-example gradients come from Opacus' hooks, which are slower: %s.", reason)


@contextmanager
def fused_gradients(model: nn.Module) -> Iterator[nn.Module]:
    """Store per-example gradients in ``parameter.grad_sample`` on every backward pass inside the context.

    It replaces Opacus' hooks for PEFT models, at the cost of plain training: `opacus.PrivacyEngine` with
    ``grad_sample_mode="no_op"`` takes the gradients from there. The loss must be the sum of the examples' losses, each
    of which depends on its own example alone. The first dimension of each layer's input must be the batch of examples.
    On exit the model is restored.

    Args:
        model: A PEFT model. LoRA factors of linear layers can be trained, without dropout before A, and linear layers
            and layer normalizations in ``modules_to_save``.

    Raises:
        PrivacyError: Something else is trained, or a LoRA layer is of a variant.

    Example:
        >>> import fedsvd, opacus, peft, torch
        >>> config = peft.LoraConfig(r=2, target_modules="0", init_lora_weights=False)
        >>> model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 4)), config)
        >>> trained, x = [p for p in model.parameters() if p.requires_grad], torch.randn(16, 8, requires_grad=True)
        >>> with fedsvd.fused_gradients(model):
        ...     model(x).square().sum().backward()
        >>> fused = [p.grad_sample for p in trained]
        >>> hooked = opacus.GradSampleModule(model, loss_reduction="sum")
        >>> hooked(x).square().sum().backward()
        >>> all(torch.allclose(mine, p.grad_sample, atol=1e-4) for mine, p in zip(fused, trained))
        True
    """
    reason = unsupported_reason(model)
    if reason:
        raise PrivacyError(f"fused per-example gradients are not possible: {reason}. Use Opacus' hooks.")
    patched: list[nn.Module] = []
    try:
        for site in lora_sites(model).values():
            site.layer.forward = partial(_site_forward, site)
            patched.append(site.layer)
        for layer in _trained_head_layers(model):
            forward: Any = _linear_forward if isinstance(layer, nn.Linear) else _norm_forward
            layer.forward = partial(forward, layer)
            patched.append(layer)
        yield model
    finally:
        for module in patched:
            del module.forward


def _trained_head_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield each trained linear layer and layer normalization in heads that are stored with the adapter."""
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            for layer in wrapper.modules_to_save.modules():
                is_supported = type(layer) in (nn.Linear, nn.LayerNorm)
                if is_supported and any(p.requires_grad for p in layer.parameters(recurse=False)):
                    yield layer


def _site_forward(site: LoraSite, x: Tensor) -> Tensor:
    result: Tensor = Site.apply(  # type: ignore[no-untyped-call]
        x, site.layer, site.A, site.B, site.core, site.scale
    )
    return result


def _linear_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    result: Tensor = TrainedLinear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return result


def _norm_forward(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    normalized = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    result: Tensor = TrainedScale.apply(normalized, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return result

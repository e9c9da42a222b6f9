"""Per-example gradients of LoRA factors at the cost of non-private training.

Opacus' hooks store the input and the output gradient of every trained layer and compute per-example gradients
afterwards. Here, each LoRA site is one autograd function. Its forward pass computes the frozen layer and both factors;
its backward pass computes the gradient of the input and, with one batched product, each example's gradient of B (and of
A, if it is trained). With ``u = x Aᵀ`` (T × r for an example of T positions), ``g`` the gradient of the site's output
and s its scale,

    ∂B = s · gᵀ u        ∂A = s · (g B)ᵀ x        ∂x = g W + s · (g B) A

Only u is saved for the backward pass (and x, if A is trained). With a core C between the factors, ``u Cᵀ`` replaces u,
``g B C`` replaces ``g B``, and ``∂C = s · (g B)ᵀ u``. Weights are never merged, so nothing has to be undone. If the
frozen layer is bfloat16 and the factors are float32, all products with factors are computed in float32. The gradients
are stored in ``parameter.grad_sample``, where Opacus' optimizer expects them (its ``grad_sample_mode="no_op"``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fedsvd.errors import PrivacyError
from fedsvd.lora.peft_model import lora_sites
from fedsvd.lora.site import LoraSite, base_weight
from fedsvd.privacy.dp_sgd import GradSampleMode, opacus_hooks

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


def _uses_checkpointing(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@lru_cache(maxsize=64)
def _warn_once(reason: str) -> None:
    logger.warning("per-example gradients come from Opacus' hooks, which are slower: %s.", reason)


@contextmanager
def fused_gradients(model: nn.Module) -> Iterator[nn.Module]:
    """Store per-example gradients in ``parameter.grad_sample`` on every backward pass inside the context.

    The first dimension of each site's input must be the batch of examples. On exit the model is restored.

    Args:
        model: A model for which `unsupported_reason` returns None.
    """
    patched: list[nn.Module] = []
    try:
        for site in lora_sites(model).values():
            site.layer.forward = partial(_site_forward, site)  # type: ignore[method-assign]
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
    result: Tensor = _Site.apply(  # type: ignore[no-untyped-call]
        x, site.layer.get_base_layer(), site.A, site.B, site.core, site.scale, base_weight(site.layer)
    )
    return result


def _linear_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    result: Tensor = _Linear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return result


def _norm_forward(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    normalized = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    result: Tensor = _Scale.apply(normalized, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return result


class _Site(torch.autograd.Function):
    """The frozen layer plus ``s · B C A`` (C = I without a core), with per-example gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: nn.Module,
        A: Tensor,
        B: Tensor,
        core: Tensor | None,
        scale: float,
        weight: Tensor,
    ) -> Tensor:
        u = functional.linear(x.to(A.dtype), A)
        v = u if core is None else functional.linear(u, core)
        result = _add_product(base(x), v, B.mT, scale)
        ctx.save_for_backward(
            v if B.requires_grad else None,
            x if A.requires_grad else None,
            u if core is not None and core.requires_grad else None,
        )
        ctx.weight, ctx.A, ctx.B, ctx.core, ctx.scale = weight, A, B, core, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        v, x, u = ctx.saved_tensors
        A, B, core, scale = ctx.A, ctx.B, ctx.core, ctx.scale
        g_factors = g.to(B.dtype)
        if v is not None:
            _accumulate_sample(B, torch.bmm(_flatten_positions(g_factors).mT, _flatten_positions(v)).mul_(scale))
        if not (ctx.needs_input_grad[0] or x is not None or u is not None):
            return (None,) * 7
        h = torch.matmul(g_factors, B)
        if u is not None:
            _accumulate_sample(core, torch.bmm(_flatten_positions(h).mT, _flatten_positions(u)).mul_(scale))
        if core is not None:
            h = torch.matmul(h, core)
        if x is not None:
            _accumulate_sample(A, torch.bmm(_flatten_positions(h).mT, _flatten_positions(x.to(A.dtype))).mul_(scale))
        if not ctx.needs_input_grad[0]:
            return (None,) * 7
        return (_add_product(torch.matmul(g, ctx.weight), h, A, scale), None, None, None, None, None, None)


class _Linear(torch.autograd.Function):
    """A trained linear layer, with per-example gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias = weight, bias
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if ctx.weight.requires_grad:
            _accumulate_sample(ctx.weight, torch.bmm(_flatten_positions(g).mT, _flatten_positions(x)))
        if ctx.bias is not None and ctx.bias.requires_grad:
            _accumulate_sample(ctx.bias, _flatten_positions(g).sum(dim=1))
        return (torch.matmul(g, ctx.weight) if ctx.needs_input_grad[0] else None, None, None)


class _Scale(torch.autograd.Function):
    """The trained scale and shift of a layer normalization, with per-example gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias = weight, bias
        return x * weight if bias is None else x * weight + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if ctx.weight.requires_grad:
            _accumulate_sample(ctx.weight, _flatten_positions(g * x).sum(dim=1))
        if ctx.bias is not None and ctx.bias.requires_grad:
            _accumulate_sample(ctx.bias, _flatten_positions(g).sum(dim=1))
        return (g * ctx.weight if ctx.needs_input_grad[0] else None, None, None)


def _add_product(result: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return ``result + scale · left right``.

    Computed in place if all have the same dtype; otherwise the sum is rounded once to the dtype of ``result``.
    """
    if result.dtype != left.dtype:
        return (result + scale * torch.matmul(left, right)).to(result.dtype)
    flat = result.view(-1, result.shape[-1])
    torch.addmm(flat, left.view(-1, left.shape[-1]), right, alpha=scale, out=flat)
    return result


def _flatten_positions(tensor: Tensor) -> Tensor:
    """View (batch, …, d) as (batch, positions, d)."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


def _accumulate_sample(parameter: Tensor, sample: Tensor) -> None:
    """Store each example's gradient; gradients of a layer that is called more than once are summed."""
    previous = getattr(parameter, "grad_sample", None)
    parameter.grad_sample = sample if previous is None else previous + sample  # type: ignore[attr-defined]

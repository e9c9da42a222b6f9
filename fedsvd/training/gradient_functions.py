"""Autograd functions that store per-example gradients; see `fedsvd.training.per_example_gradients`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fedsvd.lora.site import base_weight


class Site(torch.autograd.Function):
    """The frozen layer plus ``s · B C A`` (C = I without a core), with per-example gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layer: Any,
        A: Tensor,
        B: Tensor,
        core: Tensor | None,
        scale: float,
    ) -> Tensor:
        """Compute the output, and keep what the backward pass needs."""
        u = functional.linear(x.to(A.dtype), A)
        v = u if core is None else functional.linear(u, core)
        result = _add_product(layer.get_base_layer()(x), v, B.mT, scale)
        ctx.save_for_backward(
            v if B.requires_grad else None,
            x if A.requires_grad else None,
            u if core is not None and core.requires_grad else None,
        )
        ctx.layer, ctx.A, ctx.B, ctx.core, ctx.scale = layer, A, B, core, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Store each example's gradients, and return that of the input."""
        v, x, u = ctx.saved_tensors
        A, B, core, scale = ctx.A, ctx.B, ctx.core, ctx.scale
        g_factors = g.to(B.dtype)
        if v is not None:
            _accumulate_sample(B, torch.bmm(_flatten_positions(g_factors).mT, _flatten_positions(v)).mul_(scale))
        if not (ctx.needs_input_grad[0] or x is not None or u is not None):
            return (None,) * 6
        h = torch.matmul(g_factors, B)
        if u is not None:
            _accumulate_sample(core, torch.bmm(_flatten_positions(h).mT, _flatten_positions(u)).mul_(scale))
        if core is not None:
            h = torch.matmul(h, core)
        if x is not None:
            _accumulate_sample(A, torch.bmm(_flatten_positions(h).mT, _flatten_positions(x.to(A.dtype))).mul_(scale))
        if not ctx.needs_input_grad[0]:
            return (None,) * 6
        weight = base_weight(ctx.layer)
        return (_add_product(torch.matmul(g, weight.to(g.dtype)), h, A, scale), None, None, None, None, None)


class TrainedLinear(torch.autograd.Function):
    """A trained linear layer, with per-example gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the output, and keep what the backward pass needs."""
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias = weight, bias
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Store each example's gradients, and return that of the input."""
        (x,) = ctx.saved_tensors
        if ctx.weight.requires_grad:
            _accumulate_sample(ctx.weight, torch.bmm(_flatten_positions(g).mT, _flatten_positions(x)))
        if ctx.bias is not None and ctx.bias.requires_grad:
            _accumulate_sample(ctx.bias, _flatten_positions(g).sum(dim=1))
        return (torch.matmul(g, ctx.weight) if ctx.needs_input_grad[0] else None, None, None)


class TrainedScale(torch.autograd.Function):
    """The trained scale and shift of a layer normalization, with per-example gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the output, and keep what the backward pass needs."""
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias = weight, bias
        return x * weight if bias is None else x * weight + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Store each example's gradients, and return that of the input."""
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
    """View (batch, …, d) as (batch, positions, d); the batch may be empty."""
    return tensor.reshape(tensor.shape[0], tensor.shape[1:-1].numel(), tensor.shape[-1])


def _accumulate_sample(parameter: Tensor, sample: Tensor) -> None:
    """Store each example's gradient; gradients of a layer that is called more than once are summed."""
    previous = getattr(parameter, "grad_sample", None)
    parameter.grad_sample = sample if previous is None else previous + sample  # type: ignore[attr-defined]

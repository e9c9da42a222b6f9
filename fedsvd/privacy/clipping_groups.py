"""Separate clipping of the head and the factors, with the joint sensitivity of common clipping.

With a share c in (0, 1) of the clipping norm C, an example's gradient g = (h, f) of head and factors becomes
``(clip(h, c C), clip(f, √(1-c²) C))``. One example then changes the sum of a batch by at most C, as with common
clipping, because

    ‖(clip(h, c C), clip(f, √(1-c²) C))‖² = ‖clip(h, c C)‖² + ‖clip(f, √(1-c²) C)‖² ≤ c² C² + (1-c²) C² = C².

Noise of standard deviation σ C in every entry of the sum, of the head and of the factors alike, is therefore the
Gaussian mechanism with noise multiplier σ, and costs the same ε. Only the allocation changes: a part with large
gradients no longer takes the clipping norm from the other. In a round that trains only one of the two, that part has
all of C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ClippingGroup:
    """Parameters that are clipped together.

    Attributes:
        parameters: The parameters; their per-example gradients are in ``grad_sample``, shape (batch, *parameter).
        max_norm: Bound on the L2 norm of an example's gradient of these parameters.
    """

    parameters: Sequence[nn.Parameter]
    max_norm: float

    def clip(self) -> Tensor:
        """Scale the per-example gradients down to the bound, in place; return which were, shape (batch,)."""
        samples: list[Tensor] = [parameter.grad_sample for parameter in self.parameters]  # type: ignore[attr-defined]
        norms = joint_norms(samples)
        factors = (self.max_norm / norms.clamp(min=self.max_norm)).nan_to_num(0.0)
        for sample in samples:
            sample.mul_(factors.to(sample.device).view(-1, *[1] * (sample.dim() - 1)))
        return norms > self.max_norm


def split_by_share(
    optimizer: torch.optim.Optimizer, head: Sequence[nn.Parameter], share: float | None, max_grad_norm: float
) -> list[ClippingGroup]:
    """Return the groups of head and factors.

    Args:
        optimizer: The optimizer of all trained parameters.
        head: Those of the head.
        share: c; None clips all together.
        max_grad_norm: C.

    Returns:
        Two groups; an empty list if all parameters are clipped together.
    """
    head_ids = {id(parameter) for parameter in head}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    factors = [parameter for parameter in parameters if id(parameter) not in head_ids]
    if share is None or not factors or not head_ids:
        return []
    return [
        ClippingGroup(list(head), share * max_grad_norm),
        ClippingGroup(factors, math.sqrt(1 - share**2) * max_grad_norm),
    ]


def joint_norms(samples: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each example's gradients, given as tensors of shape (batch, *parameter); shape (batch,)."""
    # Layers can be on different devices.
    norms = torch.stack([torch.linalg.vector_norm(s.flatten(1), dim=1).to(samples[0].device) for s in samples])
    joint: Tensor = torch.linalg.vector_norm(norms, dim=0)
    return joint

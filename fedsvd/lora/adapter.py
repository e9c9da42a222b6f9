"""LoRA adapters as named matrices, the representation in which they are sent, averaged and stored.

A site is one adapted linear layer. Its weight update is ``scale · (base_left base_right + B C A)`` with ``B`` of shape
(d_out, r), ``A`` of shape (r, d_in) and a core ``C`` of shape (r, r), which most methods do not use (C = I). The base
``base_left base_right`` holds the updates that earlier rounds merged into the frozen weight, as stacked low-rank
factors. It is also empty for most methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Factor = Literal["A", "B", "core"]
Part = Literal["A", "B", "core", "head", "base_left", "base_right"]
PARTS: tuple[Part, ...] = ("A", "B", "core", "head", "base_left", "base_right")


@dataclass(frozen=True)
class Adapter:
    """The factors of all sites of a model, in model order, and the parameters of the classifier head.

    Attributes:
        A: Down-projections by site name, shape (r, d_in).
        B: Up-projections by site name, shape (d_out, r).
        head: Tensors by parameter name of the parameters that are not in the base checkpoint (classifier head).
        scale: What the update is multiplied by, ``lora_alpha / rank`` or, with rsLoRA, ``lora_alpha / √rank``, by site.
        core: Matrices between B and A by site name, shape (r, r); empty if the method has none.
        base_left: Left factors of the merged updates by site name, shape (d_out, R); empty if nothing was merged.
        base_right: Right factors of the merged updates by site name, shape (R, d_in). R is the same for all sites.
    """

    A: Mapping[str, Tensor]
    B: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    scale: Mapping[str, float]
    core: Mapping[str, Tensor] = field(default_factory=dict)
    base_left: Mapping[str, Tensor] = field(default_factory=dict)
    base_right: Mapping[str, Tensor] = field(default_factory=dict)

    def part(self, name: Part) -> Mapping[str, Tensor]:
        """Return the named tensors of one part, in the order in which they are sent."""
        part: Mapping[str, Tensor] = getattr(self, name)
        return part

    def with_parts(self, parts: Mapping[Part, Mapping[str, Tensor]]) -> Adapter:
        """Return a copy with the given parts replaced."""
        merged = {name: dict(parts.get(name, self.part(name))) for name in PARTS}
        return Adapter(scale=self.scale, **merged)

    def to(self, device: torch.device) -> Adapter:
        """Return a copy with all tensors on ``device``."""
        return self.with_parts({name: {key: t.to(device) for key, t in self.part(name).items()} for name in PARTS})

    @property
    def base_rank(self) -> int:
        """R, the number of columns of each left factor of the base; 0 without a base."""
        return next(iter(self.base_left.values())).shape[1] if self.base_left else 0

    @property
    def device(self) -> torch.device:
        """The device of the factors."""
        return next(iter(self.A.values())).device


def truncate_rank(adapter: Adapter, rank: int) -> Adapter:
    """Return the adapter of a client of a lower rank: the first columns of each B and rows of each A.

    The other parts are unchanged.
    """
    return adapter.with_parts(
        {
            "A": {name: A[:rank].contiguous() for name, A in adapter.A.items()},
            "B": {name: B[:, :rank].contiguous() for name, B in adapter.B.items()},
        }
    )


def as_plain_lora(adapter: Adapter) -> Adapter:
    """Return an adapter with the same weight updates but no core and no base, with factors of rank r + R per site."""
    # The names of the parts are also needed by messages that carry no tensors and must not load torch.
    import torch

    B, A = dict(adapter.B), dict(adapter.A)
    for name, core in adapter.core.items():
        B[name] = B[name] @ core
    for name, left in adapter.base_left.items():
        B[name] = torch.cat([B[name], left], dim=1)
        A[name] = torch.cat([A[name], adapter.base_right[name]])
    return adapter.with_parts({"A": A, "B": B, "core": {}, "base_right": {}, "base_left": {}})

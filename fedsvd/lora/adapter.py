"""LoRA adapters as named matrices: what a federation moves, averages and stores.

A site is one adapted linear layer. Its weight update is ``scale · (base_left base_right + B C A)`` with ``B`` of shape
(d_out, r), ``A`` of shape (r, d_in) and a core ``C`` of shape (r, r) that most methods do not have (C = I). The base is
what earlier rounds merged into the frozen weight, as stacked low-rank factors; it, too, is empty for most methods.
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
    """The factors of all sites of a model, in model order, and what the task needs on top of the checkpoint.

    Attributes:
        A: Site name to its down-projection, shape (r, d_in).
        B: Site name to its up-projection, shape (d_out, r).
        head: Parameter name to tensor, for parameters that the checkpoint does not hold (classifier head).
        scale: Site name to ``lora_alpha / rank``.
        core: Site name to what stands between B and A, shape (r, r); empty where nothing does.
        base_left: Site name to the left factor of what was merged, shape (d_out, R); empty where nothing was.
        base_right: Site name to its right factor, shape (R, d_in). All sites have one R.
    """

    A: Mapping[str, Tensor]
    B: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    scale: Mapping[str, float]
    core: Mapping[str, Tensor] = field(default_factory=dict)
    base_left: Mapping[str, Tensor] = field(default_factory=dict)
    base_right: Mapping[str, Tensor] = field(default_factory=dict)

    def part(self, name: Part) -> Mapping[str, Tensor]:
        """Return the named tensors of one part, in the order in which they travel."""
        part: Mapping[str, Tensor] = getattr(self, name)
        return part

    def with_parts(self, parts: Mapping[Part, Mapping[str, Tensor]]) -> Adapter:
        """Return a copy in which the given parts replace this adapter's."""
        kept = {name: dict(parts.get(name, self.part(name))) for name in PARTS}
        return Adapter(scale=self.scale, **kept)

    def to(self, device: torch.device) -> Adapter:
        """Return this adapter with all tensors on ``device``."""
        return self.with_parts({name: {key: t.to(device) for key, t in self.part(name).items()} for name in PARTS})

    @property
    def base_rank(self) -> int:
        """R: columns of each left factor of the base."""
        return next(iter(self.base_left.values())).shape[1] if self.base_left else 0

    @property
    def device(self) -> torch.device:
        """Where the factors lie."""
        return next(iter(self.A.values())).device


def truncate_rank(adapter: Adapter, rank: int) -> Adapter:
    """Return what a client of a lower rank holds: the first columns of each B and rows of each A, and the rest."""
    return adapter.with_parts(
        {
            "A": {name: A[:rank].contiguous() for name, A in adapter.A.items()},
            "B": {name: B[:, :rank].contiguous() for name, B in adapter.B.items()},
        }
    )


def as_plain_lora(adapter: Adapter) -> Adapter:
    """Return the same weight updates as one pair of factors a site, of rank r + R, without a core or a base."""
    # The names of the parts are also needed by messages that carry no tensors and must not load torch.
    import torch

    B, A = dict(adapter.B), dict(adapter.A)
    for name, core in adapter.core.items():
        B[name] = B[name] @ core
    for name, left in adapter.base_left.items():
        B[name] = torch.cat([B[name], left], dim=1)
        A[name] = torch.cat([A[name], adapter.base_right[name]])
    return adapter.with_parts({"A": A, "B": B, "core": {}, "base_right": {}, "base_left": {}})

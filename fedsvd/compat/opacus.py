"""The private names of Opacus that fedsvd uses; no other module uses any.

They can move with any minor version of Opacus, which is therefore pinned; ``tests/unit/compat/test_private_names.py``
tells which one has moved.
"""

from __future__ import annotations

from functools import lru_cache

from torch import nn

# What Opacus' hooks and optimizer leave on a parameter: per-example gradients and their clipped sum, and two counters.
_ATTRIBUTES = ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample")


def delete_attributes(parameter: nn.Parameter) -> None:
    """Delete what Opacus has set on a parameter."""
    for name in _ATTRIBUTES:
        if hasattr(parameter, name):
            delattr(parameter, name)


@lru_cache(maxsize=1)
def cache_renyi_curves() -> None:
    """Let Opacus' accountants compute the Rényi divergence of a mechanism once per order.

    They recompute it for every number of steps, and twice for the domain of the PRV accountant. Without this cache,
    that takes most of the accounting time, and most of the time of a small run. Results are identical.
    """
    from opacus.accountants.analysis import rdp

    rdp._compute_rdp = lru_cache(maxsize=2**15)(rdp._compute_rdp)

"""Adapters with the shapes of large models, without the models."""

import torch

from fedsvd.lora.adapter import Adapter

# (d_out, d_in) of each adapted layer.
Sites = list[tuple[int, int]]
# Adapted layers and rank, by model.
SHAPES: dict[str, tuple[Sites, int]] = {
    "minilm": ([(384, 384)] * 12, 8),
    "roberta-large": ([(1024, 1024)] * 48, 8),
}


def zero_adapter(sites: Sites, rank: int, core: bool = False) -> Adapter:
    """Return an adapter of this rank whose factors are all zero, with scale 1.

    Args:
        sites: Shapes of the adapted layers.
        rank: LoRA rank.
        core: Whether to include an r × r core per layer.
    """
    named = {f"site{k}": shape for k, shape in enumerate(sites)}
    return Adapter(
        A={name: torch.zeros(rank, d_in) for name, (_, d_in) in named.items()},
        B={name: torch.zeros(d_out, rank) for name, (d_out, _) in named.items()},
        head={},
        scale=dict.fromkeys(named, 1.0),
        core={name: torch.zeros(rank, rank) for name in named} if core else {},
    )

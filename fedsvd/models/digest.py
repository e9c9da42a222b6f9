"""Digests of weights, as keys of what is computed from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def add_tensors(digest: hashlib._Hash, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Add the names and the bytes of tensors to a digest."""
    for name, tensor in tensors:
        digest.update(name.encode())
        # Tensors of torchao consist of others and have no bytes of their own.
        plain = tensor.dequantize() if hasattr(tensor, "__tensor_flatten__") else tensor
        digest.update(plain.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

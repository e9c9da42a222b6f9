"""What a client trains and never sends: kept in a file of its own, through all processes of a run."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from safetensors.torch import load_file, save_file

from fedsvd.errors import RunError
from fedsvd.lora.adapter import Adapter, Factor


def save_personal_factors(path: Path, adapter: Adapter, factors: Collection[Factor]) -> None:
    """Write some factors whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {
        f"{part}/{name}": t.detach().cpu().contiguous() for part in factors for name, t in adapter.part(part).items()
    }
    save_file(tensors, temporary)
    temporary.replace(path)


def with_personal_factors(path: Path, adapter: Adapter, factors: Collection[Factor]) -> Adapter:
    """Return an adapter with this client's own factors in it, where it has trained some.

    Raises:
        RunError: A file of another model or rank.
    """
    if not path.exists():
        return adapter
    held = load_file(path, device=str(adapter.device))
    parts = {}
    for part in factors:
        wanted = adapter.part(part)
        found = {name: held[f"{part}/{name}"] for name in wanted if f"{part}/{name}" in held}
        if any(name not in found or found[name].shape != tensor.shape for name, tensor in wanted.items()):
            raise RunError(f"{path} belongs to another model or rank; move it away to start anew.")
        parts[part] = found
    return adapter.with_parts({part: parts[part] for part in factors})

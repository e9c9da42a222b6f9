"""Personal factors: trained by a client, never sent, and stored in a file for the later processes of the run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from safetensors.torch import load_file, save_file

from fedsvd.errors import RunError
from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.runs.folder import replaced


def save_personal_factors(path: Path, adapter: Adapter, factors: Collection[Factor]) -> None:
    """Write personal factors to a file, atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{part}/{name}": t.detach().cpu().contiguous() for part in factors for name, t in adapter.part(part).items()
    }
    with replaced(path) as temporary:
        save_file(tensors, temporary)


def with_personal_factors(path: Path, adapter: Adapter, factors: Collection[Factor]) -> Adapter:
    """Return an adapter with this client's personal factors, if it has trained any.

    Raises:
        RunError: If the file belongs to another model or rank.
    """
    if not path.exists():
        return adapter
    stored = {key: tensor.to(adapter.device) for key, tensor in load_file(path).items()}
    parts = {}
    for part in factors:
        expected = adapter.part(part)
        tensors = {name: stored[f"{part}/{name}"] for name in expected if f"{part}/{name}" in stored}
        if any(name not in tensors or tensors[name].shape != tensor.shape for name, tensor in expected.items()):
            raise RunError(f"{path} contains factors of another model or rank; move the file away to start afresh.")
        parts[part] = tensors
    return adapter.with_parts({part: parts[part] for part in factors})

"""Checks of a run's adapters, which are exported and loaded only if they are complete."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fedsvd.errors import RunError
from fedsvd.runs.folder import RunFolder

_WEIGHTS = "adapter_model.safetensors"


def check_adapter(folder: RunFolder, adapter: Path) -> None:
    """Read the files of an adapter.

    Args:
        folder: The run directory.
        adapter: The directory of one of its adapters.

    Raises:
        RunError: A file is missing, truncated or of another format.
    """
    path = adapter / "adapter_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise _damaged(path, "it has no peft_type")
    _check_tensors(adapter / _WEIGHTS)
    if folder.standardization.exists():
        _check_tensors(folder.standardization)


def _check_tensors(path: Path) -> None:
    try:
        # The header is compared with the size of the file.
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
            for name in names:
                tensors.get_tensor(name)
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not names:
        raise _damaged(path, "it holds no tensors")


def _damaged(path: Path, reason: str) -> RunError:
    return RunError(
        f"{path} cannot be read ({' '.join(reason.split())}): the adapter is damaged. Restore the file from a copy, or "
        "resume the run to write it again."
    )

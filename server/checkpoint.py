"""Checkpoints: a folder a round, there whole or not at all."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsvd.errors import RunError
from fedsvd.lora.adapter import PARTS, Adapter
from fedsvd.methods import State
from fedsvd.runs.folder import fsync_path, write_json

MAX_CHECKPOINTS = 3
_GROWING = ("base_left", "base_right")
_KEPT = "state"
_ADAPTER, _STATE, _TEMPORARY = "adapter.safetensors", "state.json", ".tmp"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: nothing else carries over from round to round.

    Attributes:
        server_round: Rounds done.
        adapter: The global adapter after that round.
        history: The rows of ``metrics.jsonl`` so far.
        clients: What ``privacy.json`` says so far, by client number.
        state: What the method, the server's optimiser and the downlink remember.
    """

    server_round: int
    adapter: Adapter
    history: list[dict[str, Any]]
    clients: Mapping[str, Any]
    state: State = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write one checkpoint, make it durable, and delete all but the newest few.

    The folder is written under a temporary name and renamed, so that a crash leaves the older ones as they were. Where
    the disk is full, all but the newest make room for it.

    Raises:
        RunError: It cannot be written even so; the newest one from before is whole.
    """
    try:
        try:
            _write(folder, checkpoint)
        except (OSError, SafetensorError) as error:
            older = _rounds(folder)[:-1] if folder.is_dir() else []
            if not older:
                raise
            logger.warning("round %d: %s; older checkpoints make room for this one", checkpoint.server_round, error)
            remove_incomplete(folder)
            for old in older:
                _delete(old)
            _write(folder, checkpoint)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)
        raise RunError(
            f"the checkpoint of round {checkpoint.server_round} cannot be written ({error}), and a round that is not "
            f"kept would be paid for in vain: make room, then go on with resume={folder.parent}."
        ) from error
    for old in _rounds(folder)[:-MAX_CHECKPOINTS]:
        _delete(old)


def remove_incomplete(folder: Path) -> None:
    """Delete what an earlier process was writing, or deleting, when it was cut off."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        logger.warning("%s was being written when the run was cut off, and is dropped", left)
        shutil.rmtree(left)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    remove_incomplete(folder)
    temporary = folder / _TEMPORARY
    temporary.mkdir()
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part in PARTS
        for name, tensor in checkpoint.adapter.part(part).items()
    }
    for key, named in checkpoint.state.items():
        tensors |= {f"{_KEPT}/{key}/{name}": tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    save_file(tensors, temporary / _ADAPTER)
    fsync_path(temporary / _ADAPTER)
    state = {
        "server_round": checkpoint.server_round,
        "history": checkpoint.history,
        "clients": dict(checkpoint.clients),
    }
    write_json(temporary / _STATE, state)
    final = folder / f"round-{checkpoint.server_round:06d}"
    if final.exists():
        _delete(final)
    temporary.rename(final)
    fsync_path(folder)


def _delete(old: Path) -> None:
    """Take a checkpoint out of sight first: one that is deleted in part must not look like one."""
    doomed = old.with_name(f"{_TEMPORARY}-{old.name}")
    old.rename(doomed)
    shutil.rmtree(doomed)


def load_latest(folder: Path, like: Adapter) -> Checkpoint:
    """Load the newest checkpoint.

    Args:
        folder: A run's ``checkpoints`` folder.
        like: An adapter with the sites, shapes and scales that the checkpoint must have.

    Raises:
        RunError: There is none, it cannot be read, or it belongs to another model or rank.
    """
    rounds = _rounds(folder)
    if not rounds:
        raise RunError(f"{folder} holds no checkpoint; give resume=RUN_DIR the folder of a run that finished a round.")
    newest = rounds[-1]
    try:
        state = json.loads((newest / _STATE).read_text(encoding="utf-8"))
        tensors = load_file(newest / _ADAPTER)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"checkpoint {newest} cannot be read ({error}); delete it to go on from the one before."
        ) from error
    parts = {}
    for part in PARTS:
        found = _named(tensors, f"{part}/")
        wanted = {name: tensor.shape for name, tensor in like.part(part).items()}
        # The base is as large as the rounds have made it.
        if part not in _GROWING and {name: tensor.shape for name, tensor in found.items()} != wanted:
            raise RunError(f"checkpoint {newest} belongs to another model or rank; resume with the run's own settings.")
        parts[part] = {name: found[name] for name in (wanted or like.A) if name in found}
    return Checkpoint(
        state["server_round"], like.with_parts(parts), state["history"], state["clients"], _state(tensors)
    )


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _state(tensors: Mapping[str, Tensor]) -> State:
    kept: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _named(tensors, f"{_KEPT}/").items():
        group, _, name = key.partition("/")
        kept.setdefault(group, {})[name] = tensor
    return kept


def _rounds(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*"))

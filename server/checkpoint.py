"""Checkpoints: one directory per round, written atomically."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsvd.config.quoting import resume_command
from fedsvd.errors import ResumeError, RunError
from fedsvd.launch.resumed_data import NEW_RUN
from fedsvd.lora.adapter import PARTS, Adapter
from fedsvd.methods import State
from fedsvd.runs.folder import fsync_path, write_json

MAX_CHECKPOINTS = 3
# Parts whose rank grows from round to round.
_BASE_PARTS = ("base_left", "base_right")
# Prefix of the state's tensors in the checkpoint file.
_STATE_PREFIX = "state"
_TENSORS_FILE, _STATE_FILE, _TEMPORARY = "adapter.safetensors", "state.json", ".tmp"

_Value = TypeVar("_Value")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to resume; no other state is carried over from round to round.

    Attributes:
        server_round: Number of completed rounds.
        adapter: The global adapter after that round.
        history: The rows of ``metrics.jsonl`` so far.
        clients: The clients' entries of ``privacy.json`` so far, by client number.
        state: State of the method, the server optimizer and the downlink.
    """

    server_round: int
    adapter: Adapter
    history: list[dict[str, Any]]
    clients: Mapping[str, Any]
    state: State = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int | None = None) -> None:
    """Write one checkpoint, flush it to disk, and delete all but the newest `MAX_CHECKPOINTS` and that of ``keep``.

    The directory is written under a temporary name and renamed, so that a crash does not damage older checkpoints. If
    writing fails, e.g. because the disk is full, all older checkpoints but the newest and that of ``keep`` are deleted
    and the write is retried.

    Args:
        folder: The ``checkpoints`` directory of a run.
        checkpoint: The checkpoint.
        keep: A round whose checkpoint is not deleted, whatever its age.

    Raises:
        RunError: If the retry fails too; the newest older checkpoint is intact.
    """
    try:
        try:
            _write(folder, checkpoint)
        except (OSError, SafetensorError) as error:
            older = [old for old in _rounds(folder)[:-1] if old.name != _name(keep)]
            if not older:
                raise
            logger.warning(
                "round %d: checkpoint failed (%s); deleting older checkpoints to free space",
                checkpoint.server_round,
                error,
            )
            remove_incomplete(folder)
            for old in older:
                _delete(old)
            _write(folder, checkpoint)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)
        raise RunError(
            f"checkpoint of round {checkpoint.server_round} cannot be written ({error}); without it, the privacy "
            f"spent on the round would be wasted: free disk space, then continue with {resume_command(folder.parent)}"
        ) from error
    for old in _rounds(folder)[:-MAX_CHECKPOINTS]:
        if old.name != _name(keep):
            _delete(old)


def remove_incomplete(folder: Path) -> None:
    """Delete directories that an interrupted process was writing or deleting."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        logger.warning("deleting %s, which an interrupted run left incomplete", leftover)
        shutil.rmtree(leftover)


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
    for key, state_tensors in checkpoint.state.items():
        tensors |= {
            f"{_STATE_PREFIX}/{key}/{name}": tensor.detach().cpu().contiguous()
            for name, tensor in state_tensors.items()
        }
    save_file(tensors, temporary / _TENSORS_FILE)
    fsync_path(temporary / _TENSORS_FILE)
    state = {
        "server_round": checkpoint.server_round,
        "history": checkpoint.history,
        "clients": dict(checkpoint.clients),
    }
    write_json(temporary / _STATE_FILE, state)
    final = folder / _name(checkpoint.server_round)
    if final.exists():
        _delete(final)
    temporary.rename(final)
    fsync_path(folder)


def _delete(old: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that a partially deleted one is not taken for a checkpoint."""
    renamed = old.with_name(f"{_TEMPORARY}-{old.name}")
    old.rename(renamed)
    shutil.rmtree(renamed)


def load_latest(folder: Path, like: Adapter) -> Checkpoint:
    """Load the newest checkpoint.

    Args:
        folder: The ``checkpoints`` directory of a run.
        like: Adapter with the expected sites, shapes and scales.

    Raises:
        ResumeError: See `other_start`.
        RunError: If there is no checkpoint, it cannot be read, or it belongs to another model or rank.
    """
    if not saved_rounds(folder):
        raise RunError(f"{folder} contains no checkpoint: set resume to the directory of a run that completed a round.")
    return load_checkpoint(folder, max(saved_rounds(folder)), like)


def load_checkpoint(folder: Path, server_round: int, like: Adapter) -> Checkpoint:
    """Load the checkpoint of a round; see `load_latest`."""
    path = folder / _name(server_round)
    try:
        state = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
        tensors = load_file(path / _TENSORS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"checkpoint {path} cannot be read ({error}): delete it to resume from the previous one."
        ) from error
    parts = {}
    for part in PARTS:
        loaded = with_prefix(tensors, f"{part}/")
        expected = {name: tensor.shape for name, tensor in like.part(part).items()}
        if part == "core" and expected and not loaded:
            raise other_start(folder, server_round)
        # The rank of the base depends on the rounds so far and cannot be checked.
        if part not in _BASE_PARTS and {name: tensor.shape for name, tensor in loaded.items()} != expected:
            raise RunError(f"checkpoint {path} belongs to another model or rank: resume with the settings of its run.")
        parts[part] = {name: loaded[name] for name in (expected or like.A) if name in loaded}
    return Checkpoint(
        state["server_round"], like.with_parts(parts), state["history"], state["clients"], _read_state(tensors)
    )


def other_start(folder: Path, server_round: int) -> ResumeError:
    """Return the error for a run of the head alone that an earlier version did not initialize like its method."""
    return ResumeError(
        f"checkpoint {folder / _name(server_round)} of an earlier version of fedsvd cannot be resumed: it trained the "
        "head alone (train.head_rounds was not below train.num_rounds), with factors other than those from which the "
        f"clients of its method start. To train the method, {NEW_RUN}; the run as it is can be resumed with the "
        "version that started it."
    )


def with_prefix(values: Mapping[str, _Value], prefix: str) -> dict[str, _Value]:
    """Return the values whose keys start with a prefix, by the rest of their keys."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _read_state(tensors: Mapping[str, Tensor]) -> State:
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in with_prefix(tensors, f"{_STATE_PREFIX}/").items():
        group, _, name = key.partition("/")
        state.setdefault(group, {})[name] = tensor
    return state


def saved_rounds(folder: Path) -> list[int]:
    """Return the rounds that have a checkpoint, in order."""
    return [int(path.name.removeprefix("round-")) for path in _rounds(folder)]


def _rounds(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*"))


def _name(server_round: int | None) -> str:
    return "" if server_round is None else f"round-{server_round:06d}"

"""The data of a run that is resumed: classes, examples and public text must be those that it started with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsvd.config import Config
from fedsvd.errors import ResumeError
from fedsvd.runs.folder import RunFolder, read_json
from fedsvd.runtime.data import class_names
from fedsvd.runtime.description import describe_partitions

NEW_RUN = "start a new run (without resume)"


def check_data(folder: RunFolder, config: Config, facts: Mapping[str, Any]) -> None:
    """Compare classes and fingerprints; what an earlier version did not record cannot be compared.

    Args:
        folder: Directory of the run to resume.
        config: The configuration to resume it with.
        facts: The description of the run with this configuration, see `fedsvd.runtime.description.describe_run`.

    Raises:
        ResumeError: The classes, the held-out examples, the public text or a simulated client's examples differ.
    """
    names, record = class_names(config), read_json(folder.record)
    recorded = _read_names(folder.classes)
    if recorded is not None and recorded != names:
        raise _other_data(folder, "the classes", ", ".join(recorded), ", ".join(names))
    if change := held_out_change(record, facts["held_out"]):
        raise _other_data(folder, "the held-out examples", *change)
    _check_public_text(folder, record, facts)
    if config.data.name == "node":
        return
    before, after = read_json(folder.partitions).get("clients", []), describe_partitions(config)["clients"]
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        if old["fingerprint"] != new["fingerprint"]:
            raise _other_data(folder, f"the data of client {number}", _summary(old), _summary(new))


def held_out_change(record: Mapping[str, Any], held_out: Mapping[str, Any]) -> tuple[str, str] | None:
    """Compare the held-out examples of a run with those that its data have now.

    Args:
        record: The record of the run (``run.json``).
        held_out: Their description, see `fedsvd.runtime.description.describe_held_out`.

    Returns:
        A summary of those of the run and of the present ones; None if they are the same, or the run recorded none.
    """
    old = record.get("held_out") or {}
    if old.get("fingerprint", held_out["fingerprint"]) == held_out["fingerprint"]:
        return None
    return _summary(old), _summary(held_out)


def _check_public_text(folder: RunFolder, record: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    old, new = _public_text(record), _public_text(facts)
    if old and new and old["sha256"] != new["sha256"]:
        raise _other_data(folder, "the public text (model.public_text)", _corpus(old), _corpus(new))


def _public_text(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the description of the public text; runs of earlier versions have it only with their pooling."""
    return facts.get("public_text") or (facts.get("pooling") or {}).get("public_text")


def _other_data(folder: RunFolder, subject: str, old: str, new: str) -> ResumeError:
    return ResumeError(
        f"resume = {str(folder.root)!r} cannot change {subject} from {old} to {new}: the run would mix what it was "
        f"trained on with other data. Restore the data, or {NEW_RUN}."
    )


def _summary(data: Mapping[str, Any]) -> str:
    counts = data.get("examples_by_class") or {}
    number = data.get("num_examples", sum(counts.values()))
    return f"{number} examples (SHA-256 {data['fingerprint'][:12]}…)"


def _corpus(text: Mapping[str, Any]) -> str:
    return f"{text['num_texts']} texts (SHA-256 {text['sha256'][:12]}…)"


def _read_names(path: Path) -> list[str] | None:
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None

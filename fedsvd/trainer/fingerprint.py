"""What a trainer is bound to: it answers only messages with the fingerprint of its first one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from flwr.app import Context

_NODE_FILES = ("data-path", "test-path")
_RUN_FILES = ("data.path", "data.test_path")


def fingerprint(bundle: Path, context: Context) -> dict[str, str]:
    """Return what determines the state of a trainer, by name.

    Args:
        bundle: Directory of the Flower app, whose name has a hash of its code.
        context: The context of a message.
    """
    files = {path: _stat(Path(path)) for path in sorted(_data_files(context))}
    return {
        "app": str(bundle),
        "run": str(context.run_id),
        "node configuration": json.dumps(dict(context.node_config), sort_keys=True),
        "data files": json.dumps(files),
        # Relative paths, such as that of a ledger, are relative to it.
        "working directory": str(Path.cwd()),
    }


def changed_parts(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return the names of the parts that differ."""
    return [name for name in new if old.get(name) != new[name]]


def _data_files(context: Context) -> Iterator[str]:
    for key in _NODE_FILES:
        if key in context.node_config:
            yield str(context.node_config[key])
    try:
        overrides = shlex.split(str(context.run_config.get("overrides", "")))
    except ValueError:
        # The handler reports the invalid overrides.
        return
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") in _RUN_FILES:
            yield value.strip("'\"")


def _stat(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_mtime_ns, status.st_size, status.st_ino]

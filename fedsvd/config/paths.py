"""Paths in a configuration, made absolute so that a run can be resumed and used from any working directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsvd.config import Config
from fedsvd.config.quoting import path_override

# Keys whose value is, or may be, a path of this machine.
PATH_KEYS = (
    "data.path",
    "data.test_path",
    "model.source",
    "model.public_text",
    "privacy.ledger_dir",
    "federation.root_certificates",
)
_FILE_FORMATS = ("csv", "jsonl", "parquet", "arrow")


def absolute_paths(overrides: Sequence[str], config: Config, *, swept: Sequence[str] = ()) -> list[str]:
    """Return the overrides with absolute paths, also for relative paths that a YAML file sets.

    Ids of the Hugging Face Hub, embedded models and paths of other machines stay as they are.

    Args:
        overrides: Overrides of a run.
        config: The configuration composed from them.
        swept: Keys that are left as they are, because they have several values.
    """
    paths = {key: path for key, path in _relative_paths(config) if key not in swept}
    others = [item for item in overrides if override_key(item) not in paths]
    return [*others, *(path_override(key, Path(path).absolute()) for key, path in paths.items())]


def absolute_values(config: Config) -> dict[str, str]:
    """Return the absolute form of every path of this machine in a configuration, by dotted key."""
    return {key: str(Path(path).absolute()) for key, path in _paths(config) if path is not None}


def override_key(override: str) -> str:
    """Return the key of an override."""
    return override.partition("=")[0].lstrip("+")


def _relative_paths(config: Config) -> Iterator[tuple[str, str]]:
    """Yield key and value of each relative path."""
    for key, path in _paths(config):
        if path is not None and not Path(path).is_absolute():
            yield key, path


def _paths(config: Config) -> Iterator[tuple[str, str | None]]:
    data, model, federation = config.data, config.model, config.federation
    if federation.name == "remote":
        # All other paths are those of the server and the nodes.
        if federation.root_certificates and not federation.root_certificates.startswith("~"):
            yield "federation.root_certificates", federation.root_certificates
        return
    if data.name in _FILE_FORMATS or (data.path and Path(data.path).exists()):
        yield "data.path", data.path
    yield "data.test_path", data.test_path
    if Path(model.source).is_dir():
        yield "model.source", model.source
    if not model.public_text.startswith("embedded:"):
        yield "model.public_text", model.public_text
    yield "privacy.ledger_dir", config.privacy.ledger_dir

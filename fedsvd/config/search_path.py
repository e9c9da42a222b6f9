"""Directories of a user's own YAML files (``--config-dir DIR``), stored as one override of ``hydra.searchpath``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from fedsvd.config.quoting import quote
from fedsvd.errors import ConfigError

_KEY, _FILE = "hydra.searchpath", "file://"


def is_search_path(override: str) -> bool:
    """Return whether an override sets ``hydra.searchpath``."""
    return override.partition("=")[0].lstrip("+") == _KEY


def config_dir_override(folder: str) -> str:
    """Return the override that adds a directory of YAML files.

    Raises:
        ConfigError: It is not a directory.
    """
    return _override([f"{_FILE}{_absolute(folder)}"])


def merge_search_paths(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with one ``hydra.searchpath``, first and with absolute paths, that has all entries.

    Hydra itself would use the first such override only.

    Raises:
        ConfigError: A value is not a list, or a directory does not exist.
    """
    entries = _entries(overrides)
    others = [item for item in overrides if not is_search_path(item)]
    return [_override(entries), *others] if entries else others


def search_paths(overrides: Iterable[str]) -> list[str]:
    """Return the overrides of ``hydra.searchpath`` among others."""
    return [item for item in overrides if is_search_path(item)]


def config_dirs(overrides: Iterable[str]) -> list[Path]:
    """Return the directories that the overrides add to ``conf/``; raises as `merge_search_paths` does."""
    return [Path(entry.removeprefix(_FILE)) for entry in _entries(overrides) if entry.startswith(_FILE)]


def group_options(folders: Iterable[Path]) -> dict[str, list[str]]:
    """Return the options of each group in directories of YAML files."""
    options: dict[str, set[str]] = {}
    for root in folders:
        for folder in (path for path in root.iterdir() if path.is_dir()):
            names = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
            if names:
                options.setdefault(folder.name, set()).update(names)
    return {name: sorted(options[name]) for name in sorted(options)}


def _entries(overrides: Iterable[str]) -> list[str]:
    parser, entries = OverridesParser.create(), []
    for item in search_paths(overrides):
        try:
            value = parser.parse_override(item).value()
        except HydraException as error:
            raise ConfigError(f"{item} cannot be parsed: use --config-dir DIR instead.") from error
        for entry in value if isinstance(value, list) else [value]:
            is_file = str(entry).startswith(_FILE) or "://" not in str(entry)
            entries.append(f"{_FILE}{_absolute(str(entry).removeprefix(_FILE))}" if is_file else str(entry))
    return list(dict.fromkeys(entries))


def _override(entries: Iterable[str]) -> str:
    return f"{_KEY}=[{','.join(map(quote, entries))}]"


def _absolute(folder: str) -> Path:
    path = Path(folder).absolute()
    if not path.is_dir():
        raise ConfigError(
            f"--config-dir {folder} is not a directory: give a directory of YAML files, such as DIR with "
            "DIR/experiment/mine.yaml."
        )
    return path

"""Methods, data sets and heads of other packages, found through entry points.

A package declares each one in its ``pyproject.toml``, under its name in the configuration::

    [project.entry-points."fedsvd.methods"]
    halved = "lab.halved:Halved"

and brings its YAML file in a directory ``conf`` of the top-level package, here ``lab/conf/method/halved.yaml``; a head
has none. Hydra finds these directories after those of fedsvd and of the user. A package is imported when one of its
names is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsvd.errors import ConfigError

METHODS, DATA, HEADS = "fedsvd.methods", "fedsvd.data", "fedsvd.heads"
_GROUPS = (METHODS, DATA, HEADS)


def names(group: str) -> list[str]:
    """Return the names that other packages add to a group, sorted."""
    return sorted(_entries()[group])


def find(group: str, name: str, built_in: Mapping[str, Any]) -> Any:
    """Return what has a name: a part of fedsvd, or what another package adds; None if nothing has it.

    Args:
        group: `METHODS`, `DATA` or `HEADS`.
        name: The name in the configuration.
        built_in: What fedsvd itself has, by name.

    Raises:
        ConfigError: Two things have the name, or the other package cannot be imported.
    """
    entry = _entries()[group].get(name)
    if entry is None:
        return built_in.get(name)
    if name in built_in:
        raise ConfigError(
            f"{_origin(entry)} adds {name!r} to {group}, a name that fedsvd itself has: rename it in that package, or "
            "uninstall the package."
        )
    try:
        return entry.load()
    except Exception as error:  # A package of others may raise anything on import.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(
            f"{_origin(entry)} adds {name!r} to {group}, but {entry.value} cannot be imported ({reason}): repair or "
            "reinstall that package."
        ) from error


def conf_dirs() -> list[Path]:
    """Return the ``conf`` directories of the packages that add something, in the order of their names."""
    packages = sorted({entry.module.partition(".")[0] for group in _GROUPS for entry in _entries()[group].values()})
    specs = [find_spec(package) for package in packages]
    roots = [Path(root) for spec in specs if spec for root in spec.submodule_search_locations or ()]
    return [root / "conf" for root in roots if (root / "conf").is_dir()]


@lru_cache(maxsize=1)
def _entries() -> Mapping[str, Mapping[str, EntryPoint]]:
    found: dict[str, dict[str, EntryPoint]] = {group: {} for group in _GROUPS}
    for group in _GROUPS:
        for entry in entry_points(group=group):
            earlier = found[group].setdefault(entry.name, entry)
            if earlier.value != entry.value:
                raise ConfigError(
                    f"{_origin(earlier)} and {_origin(entry)} both add {entry.name!r} to {group}: uninstall one of the "
                    "two."
                )
    return found


def _origin(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist else "a package"

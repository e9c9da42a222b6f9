"""The directories of runs that a sweep already has, also if the sweep has been extended by another key since."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsvd.config.compose import compose
from fedsvd.config.overrides import override_values
from fedsvd.config.paths import PATH_KEYS
from fedsvd.config.run_names import directory_name
from fedsvd.errors import ConfigError
from fedsvd.launch import saved_overrides
from fedsvd.launch.resume import comparable_values

_OVERRIDES = "overrides.json"
# At the end of a name that is too long for a directory, and therefore shortened.
_HASH = re.compile(r"-[0-9a-f]{16}$")


def check_existing_runs(folder: Path, fixed: Mapping[str, str]) -> None:
    """Check that the runs already in a directory have the overrides that this sweep does not vary.

    Raises:
        ConfigError: A run has other overrides.
    """
    expected = override_values(fixed.values())
    for path in sorted(folder.rglob(_OVERRIDES)):
        existing = override_values(json.loads(path.read_text(encoding="utf-8")))
        missing = [fixed[key] for key, value in expected.items() if not _equal(key, existing.get(key), value)]
        if missing:
            raise ConfigError(
                f"{path.parent} holds a run without {', '.join(missing)}: choose another directory for this sweep with "
                "hydra.sweep.dir=DIR."
            )


def _equal(key: str, first: object, second: object) -> bool:
    """Compare two values of a key; a path may be relative in one of them."""
    if key in PATH_KEYS and isinstance(first, str) and isinstance(second, str):
        first, second = (str(Path(value).resolve()) for value in (first, second))
    return (type(first), first) == (type(second), second)


def existing_names(
    folder: Path, choices: Mapping[str, Sequence[str]], added: Sequence[str], *, is_search: bool
) -> dict[str, str]:
    """Find the existing runs of a sweep whose directories are not named after the keys that it varies now.

    They are recognized by their configuration: a run without ``seed`` is the run with ``seed=0``, the default. A run of
    an earlier version has the defaults of that version.

    Args:
        folder: The sweep directory.
        choices: By key, the single overrides that the sweep combines; paths may be relative to the working directory.
        added: The overrides of ``hydra.searchpath``.
        is_search: Whether a search chooses the combinations, which are not known then.

    Returns:
        Directory relative to the sweep directory, by the overrides that name the run now (see
        `fedsvd.config.run_names.run_name`).

    Raises:
        ConfigError: The sweep would repeat existing runs.
    """
    runs = {path.parent.relative_to(folder).as_posix(): path for path in sorted(folder.rglob(_OVERRIDES))}
    swept = [key for key, values in choices.items() if len(values) > 1]
    if is_search:
        _check_search(folder, runs, swept)
        return {}
    names = _match(folder, runs, _combinations(choices, swept), added)
    if swept and "." in names.values():
        raise _single_run_error(folder, swept)
    return names


def _single_run_error(folder: Path, swept: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{folder} holds a single run itself, so that it cannot hold those of a sweep over {', '.join(swept)}: choose "
        "another directory for this sweep with hydra.sweep.dir=DIR."
    )


def _combinations(choices: Mapping[str, Sequence[str]], swept: Sequence[str]) -> dict[str, list[str]]:
    """Return the overrides of each run by those that name it, in the order of Hydra's ``override_dirname``."""
    runs = [dict(zip(choices, items, strict=True)) for items in itertools.product(*choices.values())]
    return {",".join(sorted(run[key] for key in swept)): list(run.values()) for run in runs}


def _match(
    folder: Path, runs: Mapping[str, Path], combinations: Mapping[str, Sequence[str]], added: Sequence[str]
) -> dict[str, str]:
    directories = {name: Path(directory_name(name, str(folder))).as_posix() for name in combinations}
    others = [directory for directory in runs if directory not in directories.values()]
    names = {_settings([*added, *items]): name for name, items in combinations.items()} if others else {}
    names.pop(None, None)
    found: dict[str, str] = {}
    # A run in the sweep directory itself last: it counts only if no other directory holds the same one.
    for directory in sorted(others, key=lambda other: other == "."):
        name = names.get(_recorded_settings(runs[directory].parent))
        # Earlier versions repeated runs of an extended sweep: the directory that is named after all keys counts then.
        if name is not None and directories[name] not in runs:
            found.setdefault(name, directory)
    return found


def _check_search(folder: Path, runs: Mapping[str, Path], swept: Sequence[str]) -> None:
    """Check that the trials in a directory are named after the keys that a search varies.

    Raises:
        ConfigError: No trial is: the search would propose them again under other names.
    """
    missing = {
        directory: [key for key in swept if f",{key}=" not in f",{directory}"]
        for directory in runs
        if not _HASH.search(directory)
    }
    # If only some are not, an earlier version has extended the search and repeated them.
    unnamed = [directory for directory, keys in missing.items() if keys]
    if not unnamed or len(unnamed) < len(missing):
        return
    if "." in unnamed:
        raise _single_run_error(folder, swept)
    raise ConfigError(
        f"{folder / unnamed[0]} is a trial of a search that did not vary {', '.join(missing[unnamed[0]])}: choose "
        "another directory for this search with hydra.sweep.dir=DIR."
    )


def _recorded_settings(folder: Path) -> str | None:
    """Return `_settings` of a run in its directory, also if an earlier version wrote it."""
    try:
        return _settings(saved_overrides(folder))
    except ConfigError:
        return None


def _settings(overrides: Sequence[str]) -> str | None:
    """Return what two runs with the same settings have in common; None if the overrides do not fit together."""
    try:
        values = comparable_values(compose(overrides))
    except ConfigError:
        return None
    return json.dumps({**values, "run_dir": None, "resume": None}, sort_keys=True, default=str)

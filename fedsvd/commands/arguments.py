"""Command-line arguments: paths and directories as a shell passes them, and a parser of ``--`` options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedsvd.commands.usage import command_usage
from fedsvd.config.overrides import quote_separator
from fedsvd.config.quoting import path_override, read_path
from fedsvd.config.search_path import config_dir_override, merge_search_paths
from fedsvd.errors import ConfigError

_CONFIG_DIR, _RESUME = ("-cd", "--config-dir"), "resume="


def normalize(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as overrides for Hydra.

    The path after ``resume=`` may contain any character: it becomes absolute and is quoted. A separator of one
    character, from which a shell has removed the quotation marks, is quoted too. ``--config-dir DIR`` becomes an
    override, so that it is stored with the run and is known to both apps.

    Raises:
        ConfigError: ``--config-dir`` has no directory.
    """
    result, rest = [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in _CONFIG_DIR:
            result.append(config_dir_override(value if equals else next(rest, "")))
        elif argument.startswith(_RESUME) and value not in ("", "null"):
            result.append(path_override("resume", Path(read_path(value)).absolute()))
        else:
            result.append(quote_separator(argument))
    return merge_search_paths(result)


def resumed_folder(overrides: Sequence[str]) -> Path | None:
    """Return the directory in the last ``resume=…`` of normalized overrides, or None if there is none."""
    values = [item.removeprefix(_RESUME) for item in overrides if item.startswith(_RESUME)]
    return Path(read_path(values[-1])) if values and values[-1] not in ("", "null") else None


class CommandParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises `ConfigError` instead of exiting.

    Args:
        command: Name of the command; every error message quotes its usage.
    """

    def __init__(self, command: str) -> None:
        self._usage = command_usage(command)
        super().__init__(prog=f"fedsvd {command}", usage=self._usage, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise the error that argparse has found.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{self.prog}: {message}. Usage: {self._usage}")

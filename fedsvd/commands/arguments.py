"""Argument parser of the commands that take a directory and ``--`` options."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fedsvd.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises `ConfigError` instead of exiting.

    Args:
        command: Name of the command.
        usage: Usage line, quoted in every error message.
    """

    def __init__(self, command: str, usage: str) -> None:
        super().__init__(prog=f"fedsvd {command}", usage=usage, add_help=False, allow_abbrev=False)
        self._usage = usage

    def error(self, message: str) -> NoReturn:
        """Raise the error that argparse has found.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{self.prog}: {message}. Usage: {self._usage}")

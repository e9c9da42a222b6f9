"""Options of the commands that take a folder and words beginning with ``--``."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fedsvd.errors import ConfigError


class Arguments(argparse.ArgumentParser):
    """argparse, whose complaints are ours."""

    def __init__(self, command: str, usage: str) -> None:
        super().__init__(prog=f"fedsvd {command}", usage=usage, add_help=False, allow_abbrev=False)
        self._usage = usage

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{self.prog}: {message}. Write: {self._usage}")

"""The ``fedsvd`` command."""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
from collections.abc import Sequence

from fedsvd import __version__
from fedsvd.commands.interrupts import InterruptGuard
from fedsvd.commands.streams import discard, tolerant_streams
from fedsvd.commands.usage import USAGE, command_help
from fedsvd.errors import ConfigError, FedSVDError, Interruption

_COMMANDS = (
    "train",
    "privacy",
    "audit",
    "compare",
    "doctor",
    "predict",
    "evaluate",
    "export",
    "report",
    "watch",
    "trainer",
)

# Set before flwr and ray are imported, so that no run sends telemetry or checks for updates.
_NO_TELEMETRY = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


# As of a process that SIGINT has ended.
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Command-line arguments without the program name; defaults to those of the process.

    Returns:
        Exit status: 0 for success, 1 for failure, 2 for invalid usage or configuration, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # A log file on a full disk must not print a traceback for each record.
    logging.raiseExceptions = False
    with tolerant_streams():
        status = _run(arguments)
        try:
            sys.stdout.flush()
        except OSError as error:
            discard(sys.stdout)
            if not status:
                _print_error(f"standard output cannot be written ({error.strerror}); the output is incomplete.")
            return status or 1
        return status


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        print(f"fedsvd {__version__}")
        return 0
    # Hydra's own help lists the options of train.
    if command in _COMMANDS and command != "train" and rest and rest[-1] in ("-h", "--help"):
        print(command_help(command), end="")
        return 0
    for name, value in _NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    guard = InterruptGuard()
    try:
        with guard:
            try:
                _run_command(command, rest)
            except Exception as error:
                if not guard.received:
                    return _report_error(error)
                _print_interruption(arguments, error)
                return _INTERRUPTED
    except KeyboardInterrupt as stopped:
        # Around the context: an interrupt may arrive while it ends.
        guard.end()
        _print_interruption(arguments, stopped)
        return _INTERRUPTED
    return 0


def _report_error(error: Exception) -> int:
    """Print an expected error on one line, and return the exit status; raise any other error."""
    if isinstance(error, FedSVDError):
        _print_error(str(error))
        return 2 if isinstance(error, ConfigError) else 1
    if isinstance(error, OSError):
        _print_error(f"{error}. Check the file, the free space on its disk, and its permissions.")
        return 1
    raise error


def _run_command(command: str, arguments: Sequence[str]) -> None:
    if command not in _COMMANDS:
        raise ConfigError(
            f"unknown command {command!r}; available commands: {', '.join(_COMMANDS)}. See fedsvd --help."
        )
    # Imported late, so that a command loads only what it needs.
    importlib.import_module(f"fedsvd.commands.{command}").run(arguments)


def _print_error(message: str) -> None:
    from rich.console import Console

    from fedsvd.report.literal import literal

    # Some messages have several lines.
    Console(stderr=True).print(literal("error:", "bold red"), literal(message, keep="\n"), soft_wrap=True)


def _print_interruption(arguments: Sequence[str], stopped: BaseException) -> None:
    """Print what is kept, and how to continue."""
    if isinstance(stopped, Interruption):
        kept, remedy = stopped.kept, stopped.remedy
    else:
        # Without any import that the interrupt may have left incomplete.
        kept = f"fedsvd {arguments[0]} was stopped before it wrote its result."
        remedy = f"run it again with {shlex.join(['fedsvd', *arguments])}"
    print(f"interrupted: {kept}\n{remedy}", file=sys.stderr)
    # An interrupt inside exec or eval, as in a dataclass, lets the interpreter end by SIGINT instead of by the exit
    # status, although it was caught here. The next evaluation of a string clears this.
    eval("None")  # noqa: S307


if __name__ == "__main__":
    sys.exit(main())

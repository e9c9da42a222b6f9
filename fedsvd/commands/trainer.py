"""``fedsvd trainer``: start a node's trainer before its first message."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedsvd.commands.usage import command_usage
from fedsvd.errors import ConfigError, Interruption
from fedsvd.report.literal import literal
from fedsvd.trainer.supervisor import listening, supervise


def run(arguments: Sequence[str]) -> None:
    """Keep a trainer at a socket until Ctrl-C.

    Raises:
        ConfigError: The arguments are invalid.
        TrainerError: The socket cannot be used, or the trainer fails repeatedly.
        Interruption: The user has ended the trainer.
    """
    name, _, value = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if name != "socket" or not value:
        raise ConfigError(f"invalid arguments: fedsvd trainer {' '.join(arguments)}. Usage: {command_usage('trainer')}")
    path = Path(value).absolute()
    try:
        with listening(path) as listener:
            message = f'the trainer listens on {path}; set trainer="{path}" in the node\'s configuration'
            Console().print(literal(message), soft_wrap=True)
            supervise(listener)
    except KeyboardInterrupt:
        raise Interruption("the trainer has ended.", f"start it again with fedsvd trainer socket={path}") from None

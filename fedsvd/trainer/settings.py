"""A node's settings of its trainer, from the node configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsvd.errors import LimitError

TRAINER_KEYS = ("trainer", "trainer-idle-s")


@dataclass(frozen=True)
class TrainerSettings:
    """How a node answers messages.

    Attributes:
        enabled: Whether a trainer answers them; otherwise, each ClientApp process does so itself.
        socket: Socket of a trainer that ``fedsvd trainer`` has started; None if the first message starts one.
        idle_s: Seconds without a message after which the trainer ends and frees its memory; 0: after each reply.
    """

    enabled: bool = True
    socket: Path | None = None
    idle_s: float = 600.0


def read_settings(node_config: Mapping[str, object]) -> TrainerSettings:
    """Read the settings of a node configuration.

    Raises:
        LimitError: If a value is invalid or has no effect.
    """
    trainer, idle_s = node_config.get("trainer"), node_config.get("trainer-idle-s")
    if trainer is not None and not (isinstance(trainer, str) and (trainer == "none" or trainer.startswith("/"))):
        raise LimitError(
            f'node configuration: trainer = {trainer!r} is invalid: expected "none", or the absolute path of a socket, '
            'as in trainer="/run/fedsvd/trainer.sock".'
        )
    if trainer == "none":
        if idle_s is not None:
            raise LimitError('node configuration: trainer-idle-s has no effect with trainer="none": set one of them.')
        return TrainerSettings(enabled=False)
    seconds = TrainerSettings.idle_s if idle_s is None else idle_s
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
        raise LimitError(
            f"node configuration: trainer-idle-s = {idle_s!r} is invalid: expected a number of seconds >= 0, as in "
            "trainer-idle-s=600."
        )
    return TrainerSettings(socket=Path(trainer) if trainer else None, idle_s=float(seconds))


def shares_errors(node_config: Mapping[str, object]) -> bool:
    """Return whether the server may read errors that may quote a node's data; any other node has none of its own."""
    return "data-path" not in node_config or node_config.get("share-errors") is True

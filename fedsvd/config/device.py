"""The names of devices."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from fedsvd.errors import ConfigError

_PATTERN, _ALLOWED = r"^(auto|cpu|cuda(:[0-9]+)?)$", "auto, cpu, cuda or cuda:N"


def check_device(name: str) -> None:
    """Check the name of a device.

    Raises:
        ConfigError: It is none, or that of a device on which fedsvd does not run.
    """
    _refuse_mps(name)
    if not re.match(_PATTERN, name):
        raise ConfigError(f"device = {name!r} is invalid: expected {_ALLOWED}.")


def _refuse_mps(name: object) -> object:
    if isinstance(name, str) and re.match(r"mps(:[0-9]+)?$", name):
        raise ConfigError(
            f"device = {name!r} is not supported: torch has no float64 there, in which losses are summed and factors "
            f"averaged. Expected {_ALLOWED}: set device=cpu."
        )
    return name


Device = Annotated[str, BeforeValidator(_refuse_mps), Field(pattern=_PATTERN, description=_ALLOWED)]

"""Checks that the methods' options share."""

from __future__ import annotations

from collections.abc import Sequence

from fedsvd.errors import ConfigError
from fedsvd.lora.initialization import A_INITIALIZATIONS, B_INITIALIZATIONS


def check_initialisation(init_a: str, init_b: str) -> None:
    """Check both factors' initialisation.

    Raises:
        ConfigError: An unknown name, or an A of zeros, which would leave B without a gradient for ever.
    """
    if init_a == "zeros":
        raise ConfigError(
            f"method.init_a = 'zeros' would leave B without a gradient for ever; choose one of "
            f"{', '.join(A_INITIALIZATIONS)}."
        )
    check_choice("init_a", init_a, A_INITIALIZATIONS)
    check_choice("init_b", init_b, B_INITIALIZATIONS)


def check_choice(key: str, value: object, allowed: Sequence[str]) -> None:
    """Check an option that is one of some words; raises `ConfigError`."""
    if value not in allowed:
        raise ConfigError(f"method.{key} = {value!r} is not allowed; choose one of {', '.join(allowed)}.")


def check_whole(key: str, value: object, least: int, what: str) -> None:
    """Check an option that is a whole number of rounds; raises `ConfigError`."""
    if type(value) is not int or value < least:
        raise ConfigError(
            f"method.{key} = {value!r} is not allowed; give a whole number of rounds from {what} upwards."
        )

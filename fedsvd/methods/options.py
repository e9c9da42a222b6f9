"""Validation of method options."""

from __future__ import annotations

from collections.abc import Sequence

from fedsvd.errors import ConfigError
from fedsvd.lora.initialization import A_INITIALIZATIONS, B_INITIALIZATIONS
from fedsvd.methods.method import Method


def check_initialization(method: Method) -> None:
    """Check the initialization of both factors.

    Raises:
        ConfigError: A name is unknown, or ``init_a`` is ``zeros``, with which B would never have a gradient, and A is
            not the only factor that is trained first.
    """
    if method.init_a == "zeros" and method.trains(1) != {"A"}:
        raise ConfigError(
            "method.init_a = 'zeros' is invalid: B would never have a gradient; choose one of "
            f"{', '.join(name for name in A_INITIALIZATIONS if name != 'zeros')}."
        )
    check_choice("init_a", method.init_a, A_INITIALIZATIONS)
    check_choice("init_b", method.init_b, B_INITIALIZATIONS)


def check_choice(key: str, value: object, allowed: Sequence[str]) -> None:
    """Check that an option has one of the allowed values; raise `ConfigError` otherwise."""
    if value not in allowed:
        raise ConfigError(f"method.{key} = {value!r} is invalid; choose one of {', '.join(allowed)}.")


def check_positive_int(key: str, value: object) -> None:
    """Check that an option is an integer of at least 1; raise `ConfigError` otherwise."""
    if type(value) is not int or value < 1:
        raise ConfigError(f"method.{key} = {value!r} is invalid; set it to an integer of at least 1.")

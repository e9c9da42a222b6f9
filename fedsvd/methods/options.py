"""Checks that the methods' options share."""

from __future__ import annotations

from fedsvd.errors import ConfigError
from fedsvd.lora import INITIALISATIONS


def check_initialisation(init_a: str, init_b: str) -> None:
    """Check both factors' initialisation.

    Raises:
        ConfigError: An unknown name, or two zero factors, whose gradients would be zero for ever.
    """
    for key, value in (("init_a", init_a), ("init_b", init_b)):
        if value not in INITIALISATIONS:
            raise ConfigError(f"method.{key} = {value!r} is not allowed; choose one of {', '.join(INITIALISATIONS)}.")
    if init_a == "zeros":
        raise ConfigError(
            "method.init_a = 'zeros' would leave B without a gradient for ever; choose kaiming or orthonormal."
        )

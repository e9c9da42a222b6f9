"""Checks that the methods' options share."""

from __future__ import annotations

from fedsvd.errors import ConfigError
from fedsvd.initialisation import A_INITIALISATIONS, B_INITIALISATIONS


def check_initialisation(init_a: str, init_b: str) -> None:
    """Check both factors' initialisation.

    Raises:
        ConfigError: An unknown name, or an A of zeros, which would leave B without a gradient for ever.
    """
    for key, value, allowed in (("init_a", init_a, A_INITIALISATIONS), ("init_b", init_b, B_INITIALISATIONS)):
        if value not in allowed:
            why = (
                "would leave B without a gradient for ever" if (key, value) == ("init_a", "zeros") else "is not allowed"
            )
            raise ConfigError(f"method.{key} = {value!r} {why}; choose one of {', '.join(allowed)}.")


def must_send_a(init_a: str) -> bool:
    """Tell whether even an A that never moves has to travel.

    What is drawn from the seed is the same everywhere; singular vectors of near-equal singular values are not, from
    one machine's linear algebra to another's.
    """
    return init_a == "weight_svd"

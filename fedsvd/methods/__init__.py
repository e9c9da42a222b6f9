"""Federated LoRA methods: what a client trains and sends, and what the server makes of it.

A method is one frozen dataclass that satisfies `Method`, one YAML under ``conf/method/`` and one row in `METHODS`.
Its fields are the keys of its YAML (beside ``name``); it checks their values in ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Protocol

from fedsvd.adapter import Adapter, Factor
from fedsvd.aggregate import Replies
from fedsvd.config import Config
from fedsvd.errors import ConfigError
from fedsvd.methods.fedavg_lora import FedAvgLoRA
from fedsvd.methods.fedsvd import FedSVD
from fedsvd.methods.ffa_lora import FFALoRA


class Method(Protocol):
    """What every method answers; one strategy and one client serve them all."""

    @property
    def init_a(self) -> str:
        """How A starts: one of `fedsvd.initialisation.A_INITIALISATIONS`."""

    @property
    def init_b(self) -> str:
        """How B starts: one of `fedsvd.initialisation.B_INITIALISATIONS`."""

    @property
    def linear(self) -> bool:
        """Whether the server step needs no more than the weighted mean of what clients send."""

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return the factors that a client's optimiser moves in this round (1-based)."""

    def uplink(self, server_round: int) -> frozenset[Factor]:
        """Return the factors that a client sends back: some or all of those it trains."""

    def downlink(self, server_round: int) -> frozenset[Factor]:
        """Return the factors that may differ from the initial adapter, which every client can draw itself."""

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int) -> Adapter:
        """Return the next global adapter from the current one and at least one reply."""


METHODS: Mapping[str, type[Method]] = {
    "fedsvd": FedSVD,
    "ffa_lora": FFALoRA,
    "fedavg_lora": FedAvgLoRA,
}


def build_method(options: Mapping[str, Any]) -> Method:
    """Build the method that a ``method`` configuration group names.

    Args:
        options: ``name`` and the fields of that method's class.

    Raises:
        ConfigError: An unknown method, an option that it does not have, or a value that it does not allow.
    """
    given = dict(options)
    name = given.pop("name", None)
    if name not in METHODS:
        raise ConfigError(f"method.name = {name!r} is not known{_nearest(str(name), METHODS)}.")
    method = METHODS[name]
    fields = [field.name for field in dataclasses.fields(method)]  # type: ignore[arg-type]
    for key in given:
        if key not in fields:
            raise ConfigError(f"method.{key} is not an option of method={name}{_nearest(key, fields)}.")
    return method(**given)


def check_method(method: Method, config: Config) -> None:
    """Refuse a method that needs single updates where none can be seen.

    Raises:
        ConfigError: Secure aggregation or client-level privacy with a method whose server step is not linear.
    """
    sums_only = {
        "federation.secure_aggregation = True": config.federation.secure_aggregation,
        "privacy.name = client_level": config.privacy.name == "client_level",
    }
    for setting, chosen in sums_only.items():
        if chosen and not method.linear:
            raise ConfigError(
                f"{setting} is not possible with method.name = {config.method['name']}: its server step needs each "
                "client's factors, and there is only their mean. Take another method, or leave that setting out."
            )


def _nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    return f"{hint} Allowed: {', '.join(known)}"

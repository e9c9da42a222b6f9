"""Federated LoRA methods: what a client trains and sends, and what the server makes of it.

A method is one frozen dataclass that satisfies `Method`, one YAML under ``conf/method/`` and one row in `METHODS`.
Its fields are the keys of its YAML (beside ``name``); it checks their values in ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from fedsvd.config import Config
from fedsvd.errors import ConfigError
from fedsvd.methods.fed_sb import FedSB
from fedsvd.methods.fedavg_lora import FedAvgLoRA
from fedsvd.methods.fedex_lora import FedExLoRA
from fedsvd.methods.fedsa_lora import FedSALoRA
from fedsvd.methods.fedsvd import FedSVD
from fedsvd.methods.ffa_lora import FFALoRA
from fedsvd.methods.flexlora import FlexLoRA
from fedsvd.methods.flora import FLoRA
from fedsvd.methods.method import Method, State, Step, Traits
from fedsvd.methods.rolora import RoLoRA

__all__ = ["METHODS", "Method", "State", "Step", "Traits", "build_method", "check_method"]


METHODS: Mapping[str, Callable[..., Method]] = {
    "fedsvd": FedSVD,
    "ffa_lora": FFALoRA,
    "fedavg_lora": FedAvgLoRA,
    "fedex_lora": FedExLoRA,
    "flora": FLoRA,
    "flexlora": FlexLoRA,
    "rolora": RoLoRA,
    "fedsa_lora": FedSALoRA,
    "fed_sb": FedSB,
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
    """Refuse what a method cannot do, before anything is loaded.

    Raises:
        ConfigError: Secure aggregation, client-level privacy or a server optimiser with a method that needs each
            client's factors; clients of lower ranks, or a federation that hides them, where the method has no place
            for that; shrinkage where the noise is not known.
    """
    name, federation = config.method["name"], config.federation
    sums_only = {
        "federation.secure_aggregation = True": federation.secure_aggregation,
        "privacy.name = client_level": config.privacy.name == "client_level",
        f"train.server_optimizer = {config.train.server_optimizer}": config.train.server_optimizer != "none",
        f"aggregation.name = {config.aggregation.name}": config.aggregation.name != "mean",
    }
    for setting, chosen in sums_only.items():
        if chosen and not method.traits.linear:
            raise ConfigError(
                f"{setting} is not possible with method.name = {name}: its server step needs each client's factors, "
                "and there is only their mean. Take another method, or leave that setting out."
            )
    if federation.client_ranks is not None and not method.traits.heterogeneous:
        able = ", ".join(key for key, each in METHODS.items() if each().traits.heterogeneous)
        raise ConfigError(
            f"federation.client_ranks = {list(federation.client_ranks)} is not possible with method.name = {name} and "
            f"its options: means of its factors exist for equal ranks only. Methods that allow it: {able}."
        )
    if method.traits.personal and config.privacy.name == "client_level":
        raise ConfigError(
            f"privacy.name = client_level is not possible with method.name = {name}: each client's own factors take "
            "part in what it reports, and no noise protects them. Take privacy=dp_sgd."
        )
    if config.method.get("shrinkage", "none") != "none":
        check_known_noise(config)


def check_known_noise(config: Config) -> None:
    """Refuse shrinkage where the noise in the mean is not known; raises `ConfigError`."""
    train = config.train
    reasons = {
        f"train.optimizer = {train.optimizer}": train.optimizer != "sgd",
        f"train.momentum = {train.momentum}": train.momentum > 0,
        f"federation.weighting = {config.federation.weighting}": config.federation.weighting == "uniform",
        f"train.weight_decay = {train.weight_decay}": train.weight_decay > 0,
        f"train.server_optimizer = {train.server_optimizer}": train.server_optimizer != "none",
        f"aggregation.name = {config.aggregation.name}": config.aggregation.name != "mean",
        "federation.secure_aggregation = True": config.federation.secure_aggregation,
    }
    for setting, chosen in reasons.items():
        if chosen:
            raise ConfigError(
                f"method.shrinkage = {config.method['shrinkage']!r} is not possible with {setting}: it must know how "
                "large the noise in the mean is. Plain SGD, open replies and no server optimiser tell it."
            )


def _nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    return f"{hint} Allowed: {', '.join(known)}"

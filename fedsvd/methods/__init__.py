"""Federated LoRA methods: which factors clients train and send, and how the server aggregates them.

A method consists of a frozen dataclass that implements `Method`, a YAML file in ``conf/method/`` and an entry in
`METHODS`. The dataclass fields are the keys of the YAML file (besides ``name``). Their values are validated in
``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from fedsvd.config import Config, plugins
from fedsvd.config.federation import settings_of_unknown_noise
from fedsvd.errors import ConfigError
from fedsvd.methods.fed_sb import FedSB
from fedsvd.methods.fedavg_lora import FedAvgLoRA
from fedsvd.methods.fedex_lora import FedExLoRA
from fedsvd.methods.fedsa_lora import FedSALoRA
from fedsvd.methods.fedsvd import FedSVD
from fedsvd.methods.ffa_lora import FFALoRA
from fedsvd.methods.flexlora import FlexLoRA
from fedsvd.methods.flora import FLoRA
from fedsvd.methods.head_rounds import HeadFirst, HeadOnly
from fedsvd.methods.method import Method, State, Step, Traits
from fedsvd.methods.rolora import RoLoRA
from fedsvd.methods.tangent import Tangent

__all__ = ["METHODS", "Method", "State", "Step", "Traits", "build_method", "build_run_method", "check_method"]


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
    "tangent": Tangent,
}


def build_method(options: Mapping[str, Any]) -> Method:
    """Build a method from the ``method`` configuration group.

    Args:
        options: The group: ``name`` and fields of that method's class.

    Raises:
        ConfigError: The method or an option is unknown, or a value is invalid.
    """
    arguments = dict(options)
    name = str(arguments.pop("name", None))
    method = plugins.find(plugins.METHODS, name, METHODS)
    if method is None:
        known = [*METHODS, *plugins.names(plugins.METHODS)]
        raise ConfigError(f"method.name = {name!r} is unknown{_suggest(name, known)}.")
    if name not in METHODS:
        _check_added(name, method)
    fields = [field.name for field in dataclasses.fields(method)]
    for key in arguments:
        if key not in fields:
            raise ConfigError(f"method.{key} is not an option of method={name}{_suggest(key, fields)}.")
    built: Method = method(**arguments)
    return built


def _check_added(name: str, method: object) -> None:
    """Check that what another package adds is a method: a dataclass with the attributes of `Method`."""
    parts = ("traits", "trains", "uplink", "server_step")
    missing = [part for part in parts if not hasattr(method, part)]
    if not isinstance(method, type) or not dataclasses.is_dataclass(method) or missing:
        raise ConfigError(
            f"method.name = {name!r} is {method!r} of another package, which is not a method: expected a frozen "
            f"dataclass with init_a, init_b, {', '.join(parts)}. See CONTRIBUTING.md."
        )


def build_run_method(config: Config) -> Method:
    """Build what a run does in its rounds: the configured method, after or instead of rounds that train the head alone.

    Raises:
        ConfigError: As for `build_method`.
    """
    method, train = build_method(config.method), config.train
    if config.model.task == "causal_lm":
        return method
    if train.is_head_only or train.trains == "none":
        return HeadOnly()
    return HeadFirst(method, train.head_rounds) if train.head_rounds else method


def check_method(method: Method, config: Config) -> None:
    """Check that a method supports the configured settings, before anything is loaded.

    Raises:
        ConfigError: One of these combinations is configured: secure aggregation, client-level privacy, a server
            optimizer or robust aggregation with a method that needs each client's factors; client ranks with a method
            that requires equal ranks; client-level privacy with a method that has personal factors; shrinkage with
            settings under which the noise in the mean is unknown; quantized weights with a method that changes them; a
            distributed model with maps of gradients; several local steps, weight decay or a server optimizer with a
            method that averages tangent vectors.
    """
    name, federation = config.method["name"], config.federation
    mean_only = {
        "federation.secure_aggregation = True": federation.secure_aggregation,
        "privacy.name = client_level": config.privacy.name == "client_level",
        f"train.server_optimizer = {config.train.server_optimizer}": config.train.server_optimizer != "none",
        f"aggregation.name = {config.aggregation.name}": config.aggregation.name != "mean",
    }
    for setting, is_set in mean_only.items():
        if is_set and not method.traits.linear:
            raise ConfigError(
                f"{setting} is unsupported with method.name = {name}: the method's server step needs each client's "
                "factors, and this setting provides only their mean. Choose another method, or remove the setting."
            )
    if federation.client_ranks is not None and not method.traits.heterogeneous:
        supported = ", ".join(key for key, build in METHODS.items() if build().traits.heterogeneous)
        raise ConfigError(
            f"federation.client_ranks = {list(federation.client_ranks)} is unsupported with method.name = {name} and "
            f"its options: its factors can be averaged for equal ranks only. Methods that support it: {supported}."
        )
    if method.traits.merges:
        _check_unquantized(config)
    if method.traits.personal and config.privacy.name == "client_level":
        raise ConfigError(
            f"privacy.name = client_level is unsupported with method.name = {name}: a client's personal factors "
            "influence what it reports, and no noise protects them. Set privacy=dp_sgd."
        )
    _check_distributed(method, config)
    if config.method.get("shrinkage", "none") != "none":
        check_known_noise(config)
    if method.traits.tangent:
        check_single_step(config)
    _check_public_coordinates(method, config)


def _check_unquantized(config: Config) -> None:
    if config.model.quantization != "none":
        raise ConfigError(
            f"model.quantization = {config.model.quantization} is unsupported with method.name = "
            f"{config.method['name']}, which adds updates to the frozen weights in each round: quantized weights "
            "would round them away. Set model.quantization=none, or choose another method."
        )


def _check_distributed(method: Method, config: Config) -> None:
    if config.model.device_map == "auto" and (method.traits.tangent or config.privacy.project_public_mean):
        raise ConfigError(
            f"model.device_map = auto is unsupported with method.name = {config.method['name']} and "
            f"privacy.project_public_mean = {config.privacy.project_public_mean}: one combines the gradients of "
            "layers on different devices. Set model.device_map=none."
        )


def _check_public_coordinates(method: Method, config: Config) -> None:
    if config.privacy.standardize_inputs:
        rounds = range(1, config.train.rounds + 1)
        trains_a = any("A" in method.trains(number) for number in rounds)
        if method.traits.tangent or (not trains_a and not config.train.is_head_only):
            raise ConfigError(
                f"privacy.standardize_inputs = True is unsupported with method.name = {config.method['name']} and its "
                "options: it changes the coordinates in which A is trained, and the method "
                + ("has coordinates of its own" if method.traits.tangent else "does not train A")
                + ". Set it to false, or choose another method."
            )
    if method.init_b == "public_jacobian" and config.train.head_init == "zeros":
        raise ConfigError(
            "method.init_b = public_jacobian is not possible with train.head_init = zeros: a head of zeros does not "
            "depend on any layer. Set train.head_init=zero_shot, or another initial head."
        )
    if method.init_b == "public_jacobian" and config.model.task not in ("sequence_classification", "regression"):
        raise ConfigError(
            f"method.init_b = public_jacobian is not possible with model.task = {config.model.task}: it needs one "
            "prediction per text. Choose another initialization."
        )


def check_single_step(config: Config) -> None:
    """Check that clients take one gradient step from the factors that they received, and nothing else.

    Raises:
        ConfigError: There are several local steps, weight decay, or a server optimizer, whose moments would belong to
            the tangent space of an earlier round.
    """
    train = config.train
    settings = {
        f"train.local_steps = {train.local_steps}": train.local_steps > 1,
        f"train.weight_decay = {train.weight_decay}": train.weight_decay > 0,
        f"train.server_optimizer = {train.server_optimizer}": train.server_optimizer != "none",
    }
    for setting, is_set in settings.items():
        if is_set:
            raise ConfigError(
                f"{setting} is unsupported with method.name = {config.method['name']}: its clients take one step in "
                "the tangent space at the factors that they received. Set train.local_steps=1, train.weight_decay=0 "
                "and train.server_optimizer=none, or choose another method."
            )


def check_known_noise(config: Config) -> None:
    """Check that the standard deviation of the noise in the mean is known, as shrinkage requires.

    Raises:
        ConfigError: A setting makes the noise in the mean unknown.
    """
    train = config.train
    unknown_mean = {
        f"federation.weighting = {config.federation.weighting}": config.federation.weighting == "uniform",
        f"train.weight_decay = {train.weight_decay}": train.weight_decay > 0,
        f"train.server_optimizer = {train.server_optimizer}": train.server_optimizer != "none",
        f"aggregation.name = {config.aggregation.name}": config.aggregation.name != "mean",
    }
    conflicts = settings_of_unknown_noise(train, config.federation)
    conflicts += [setting for setting, is_set in unknown_mean.items() if is_set]
    if conflicts:
        raise ConfigError(
            f"method.shrinkage = {config.method['shrinkage']!r} is unsupported with {conflicts[0]}: shrinkage requires "
            "a known standard deviation of the noise in the mean. Use plain SGD without momentum or weight decay, "
            "weighting by examples, the plain mean without secure aggregation, and no server optimizer."
        )


def _suggest(value: str, allowed: Mapping[str, Any] | list[str]) -> str:
    """Return the end of an error message: the closest allowed value, if there is one, and all allowed values."""
    closest = difflib.get_close_matches(value, list(allowed), n=1)
    hint = f"; did you mean {closest[0]}?" if closest else ";"
    return f"{hint} Allowed: {', '.join(allowed)}"

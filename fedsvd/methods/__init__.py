"""Federated LoRA methods: which factors clients train and send, and how the server aggregates them.

A method consists of a frozen dataclass that implements `Method`, a YAML file in ``conf/method/`` and an entry in
`METHODS`. The dataclass fields are the keys of the YAML file (besides ``name``). `build_method` validates ``init_a``
and ``init_b``, the method's ``__post_init__`` its other options and combinations.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from fedsvd.config import Config, plugins
from fedsvd.errors import ConfigError
from fedsvd.methods import checks
from fedsvd.methods.fed_sb import FedSB
from fedsvd.methods.fedavg_lora import FedAvgLoRA
from fedsvd.methods.fedex_lora import FedExLoRA
from fedsvd.methods.fedsa_lora import FedSALoRA
from fedsvd.methods.fedsvd import FedSVD
from fedsvd.methods.fedsvd_per_site import FedSVDPerSite
from fedsvd.methods.ffa_lora import FFALoRA
from fedsvd.methods.flexlora import FlexLoRA
from fedsvd.methods.flora import FLoRA
from fedsvd.methods.head_rounds import HeadFirst, HeadOnly
from fedsvd.methods.method import Method, State, Step, Traits, sent_factors
from fedsvd.methods.options import check_initialization
from fedsvd.methods.rolora import RoLoRA
from fedsvd.methods.tangent import Tangent

__all__ = [
    "METHODS",
    "Method",
    "State",
    "Step",
    "Traits",
    "build_method",
    "build_run_method",
    "check_method",
    "sent_factors",
]


METHODS: Mapping[str, Callable[..., Method]] = {
    "fedsvd": FedSVD,
    "fedsvd_per_site": FedSVDPerSite,
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
    check_initialization(built)
    return built


def _check_added(name: str, method: object) -> None:
    """Check that what another package adds is a method: a dataclass with the attributes of `Method`."""
    parts = ("traits", "trains", "server_step")
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
    if not train.uses_method:
        return HeadOnly()
    if train.is_head_only:
        return HeadOnly.before(method)
    return HeadFirst(method, train.head_rounds) if train.head_rounds else method


def check_method(method: Method, config: Config) -> None:
    """Check that a method supports the configured settings, before anything is loaded.

    Raises:
        ConfigError: One of these combinations is configured: secure aggregation, client-level privacy, a server
            optimizer or robust aggregation with a method that needs each client's factors; client ranks with a method
            that requires equal ranks; client-level privacy or shared noise with a method that has personal factors;
            shrinkage with settings under which the noise in the mean is unknown; quantized weights with a method that
            changes them; a distributed model with maps of gradients; several local steps, weight decay or a server
            optimizer with a method that averages tangent vectors; settings that change frozen factors, or under which
            the noise is unknown, with a method that trains one factor per site.
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
            "its options: its factors can be averaged for equal ranks only. Methods that support it "
            f"with their default options: {supported}."
        )
    if method.traits.merges:
        checks.check_unquantized(config)
    if method.traits.personal:
        checks.check_own_noise(config)
    checks.check_distributed(method, config)
    if config.method.get("shrinkage", "none") != "none" and config.privacy.name != "none":
        checks.check_known_noise(config, f"method.shrinkage = {config.method['shrinkage']!r}")
    if method.traits.tangent:
        checks.check_single_step(config)
    if method.traits.per_site:
        checks.check_per_site(config)
    checks.check_public_coordinates(method, config)


def _suggest(value: str, allowed: Mapping[str, Any] | list[str]) -> str:
    """Return the end of an error message: the closest allowed value, if there is one, and all allowed values."""
    closest = difflib.get_close_matches(value, list(allowed), n=1)
    hint = f"; did you mean {closest[0]}?" if closest else ";"
    return f"{hint} Allowed: {', '.join(allowed)}"

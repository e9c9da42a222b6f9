"""Checks that methods support the configured settings."""

from __future__ import annotations

from collections.abc import Mapping

from fedsvd.config import Config
from fedsvd.config.federation import settings_of_unknown_noise
from fedsvd.config.task import ONE_PREDICTION_TASKS
from fedsvd.errors import ConfigError
from fedsvd.methods.method import Method


def check_unquantized(config: Config) -> None:
    """Check that the frozen weights are not quantized; raise `ConfigError` otherwise."""
    if config.model.quantization != "none":
        raise ConfigError(
            f"model.quantization = {config.model.quantization} is unsupported with method.name = "
            f"{config.method['name']}, which adds updates to the frozen weights in each round: quantized weights "
            "would round them away. Set model.quantization=none, or choose another method."
        )


def check_own_noise(config: Config) -> None:
    """Check that each client adds all of its noise itself, which protects factors that never enter a sum.

    Raises:
        ConfigError: The server adds the noise, or the clients share it.
    """
    method = f"method.name = {config.method['name']}"
    if config.privacy.name == "client_level":
        raise ConfigError(
            f"privacy.name = client_level is unsupported with {method}: a client's personal factors "
            "influence what it reports, and no noise protects them. Set privacy=dp_sgd."
        )
    if config.privacy.noise_share:
        raise ConfigError(
            f"privacy.noise_share = True is unsupported with {method}: a client's personal factors are not part of the "
            "secure sum, so they would have that client's share of the noise only. Set privacy.noise_share=false, or "
            "choose another method."
        )


def check_distributed(method: Method, config: Config) -> None:
    """Check that nothing combines tensors of several layers of a distributed model; raise `ConfigError` otherwise."""
    settings = {
        f"method.name = {config.method['name']}": method.traits.tangent,
        f"privacy.project_public_mean = {config.privacy.project_public_mean}": config.privacy.projects_gradients,
        f"method.init_a = {method.init_a}": method.init_a == "public_pca",
    }
    found = [setting for setting, is_set in settings.items() if is_set]
    if config.model.device_map == "auto" and found:
        raise ConfigError(
            f"model.device_map = auto is unsupported with {found[0]}, which combines tensors on different devices. Set "
            "model.device_map=none."
        )


def check_public_coordinates(method: Method, config: Config) -> None:
    """Check options that take coordinates or directions from public text; raise `ConfigError` if they do not apply."""
    if config.privacy.preconditions_a:
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
    if method.init_b == "public_jacobian" and config.model.task not in ONE_PREDICTION_TASKS:
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
    _refuse(
        config,
        settings,
        "its clients take one step in the tangent space at the factors that they received. Set train.local_steps=1, "
        "train.weight_decay=0 and train.server_optimizer=none",
    )


def _refuse(config: Config, settings: Mapping[str, bool], reason: str) -> None:
    """Raise `ConfigError` for the first setting that is set, with a reason that ends with what to set instead."""
    for setting, is_set in settings.items():
        if is_set:
            raise ConfigError(
                f"{setting} is unsupported with method.name = {config.method['name']}: {reason}, or choose another "
                "method."
            )


def check_per_site(config: Config) -> None:
    """Check that a site's frozen factor cannot change, and that the noise in the progress of the other one is known.

    Raises:
        ConfigError: There is weight decay or a server optimizer, or a setting makes the noise unknown.
    """
    train = config.train
    changes = {
        f"train.weight_decay = {train.weight_decay}": train.weight_decay > 0,
        f"train.server_optimizer = {train.server_optimizer}": train.server_optimizer != "none",
    }
    _refuse(
        config,
        changes,
        "in each layer, one factor is frozen, and which one changes with the rounds. Set train.weight_decay=0 and "
        "train.server_optimizer=none",
    )
    if config.privacy.name == "none":
        return
    check_known_noise(config, f"method.name = {config.method['name']}")
    _refuse(
        config,
        {f"privacy.standardize_inputs = {config.privacy.standardize_inputs}": config.privacy.standardize_inputs},
        "the server must know the noise in each entry of A and B, and this option changes that in A. Set "
        "privacy.standardize_inputs=false",
    )


def check_known_noise(config: Config, subject: str) -> None:
    """Check that the standard deviation of the noise in the mean is known.

    Args:
        config: The configuration of the run.
        subject: The setting that needs it, for the message.

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
            f"{subject} is unsupported with {conflicts[0]}: it requires a known standard deviation of the noise in "
            "the mean. Use plain SGD without momentum or weight decay, weighting by examples, the plain mean without "
            "secure aggregation, and no server optimizer."
        )

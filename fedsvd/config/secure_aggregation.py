"""What must hold between groups where the server sees sums alone."""

from __future__ import annotations

from fedsvd.config.federation import FederationConfig
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.config.train import TrainConfig
from fedsvd.errors import ConfigError


def check_secure(privacy: PrivacyConfig, train: TrainConfig, federation: FederationConfig) -> None:
    """Refuse settings whose privacy analysis does not hold.

    Raises:
        ConfigError: What does not go together, and why.
    """
    if federation.secure_aggregation and privacy.name == "client_level" and federation.clients_per_round is not None:
        raise ConfigError(
            f"federation.clients_per_round = {federation.clients_per_round} is not allowed with "
            "federation.secure_aggregation and privacy.name = client_level: a round whose draw is too small for a "
            "secure sum would be skipped, and so tell who was drawn. Leave it at null."
        )
    if privacy.noise_share:
        reason = _why_no_share(privacy, train, federation)
        if reason:
            raise ConfigError(f"privacy.noise_share = True is not allowed: {reason}")


def _why_no_share(privacy: PrivacyConfig, train: TrainConfig, federation: FederationConfig) -> str | None:
    if privacy.name == "none":
        return "privacy.name = none adds no noise that could be shared. Take privacy=dp_sgd or privacy=client_level."
    if not federation.secure_aggregation:
        return (
            "the server would see each update with its own small share alone. Set federation.secure_aggregation=true."
        )
    if privacy.name == "client_level":
        return None
    if train.local_steps != 1:
        return (
            f"with train.local_steps = {train.local_steps} a client's later steps would see its own, smaller noise "
            "alone. Set train.local_steps=1, or take privacy=client_level."
        )
    if train.optimizer != "sgd" or train.weight_decay:
        return "a sum of updates carries a sum of noises only under plain SGD. Take train=sgd, train.weight_decay=0."
    if privacy.noise_multiplier is None:
        return (
            "every client must add the same noise, and each would calibrate its own. Set privacy.noise_multiplier "
            "to the largest that `fedsvd privacy plan` shows without noise_share."
        )
    return None

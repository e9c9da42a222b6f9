"""Constraints between groups for secure aggregation and shared noise."""

from __future__ import annotations

from fedsvd.config.federation import FederationConfig
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.config.train import TrainConfig
from fedsvd.errors import ConfigError


def check_secure(privacy: PrivacyConfig, train: TrainConfig, federation: FederationConfig) -> None:
    """Reject settings for which the privacy analysis does not hold.

    Raises:
        ConfigError: Which settings conflict, and why.
    """
    if federation.secure_aggregation and privacy.name == "client_level" and federation.clients_per_round is not None:
        raise ConfigError(
            f"federation.clients_per_round = {federation.clients_per_round} is not allowed with "
            "federation.secure_aggregation and privacy.name = client_level: a round that samples too few clients for a "
            "secure sum would be skipped, which would reveal who was sampled. Set it to null."
        )
    if federation.participants is not None and privacy.name == "client_level":
        raise ConfigError(
            f"federation.participants = {list(federation.participants)} is not allowed with privacy.name = "
            "client_level, which protects the participation of a client: set it to null, or use privacy=dp_sgd."
        )
    if privacy.noise_share:
        reason = _noise_share_obstacle(privacy, train, federation)
        if reason:
            raise ConfigError(f"privacy.noise_share = True is not allowed: {reason}")


def _noise_share_obstacle(privacy: PrivacyConfig, train: TrainConfig, federation: FederationConfig) -> str | None:
    """Return why the clients cannot share the noise, and what to change; None if they can."""
    if privacy.name == "none":
        return "privacy.name = none adds no noise that could be shared. Use privacy=dp_sgd or privacy=client_level."
    if not federation.secure_aggregation:
        return (
            "the server would see each update with only that client's share of the noise. Set "
            "federation.secure_aggregation=true."
        )
    if privacy.name == "client_level":
        return None
    if train.local_steps != 1:
        return (
            f"with train.local_steps = {train.local_steps}, the later steps of a client would be protected by its own "
            "share of the noise only. Set train.local_steps=1, or use privacy=client_level."
        )
    if train.optimizer != "sgd" or train.weight_decay:
        return (
            "a sum of updates carries the sum of the noises only under plain SGD. Use train=sgd, train.weight_decay=0."
        )
    if privacy.noise_multiplier is None and train.sample_rate is None:
        return (
            "every client must add the same noise, but each would calibrate its own for its own sample rate. Set "
            "train.sample_rate, or set privacy.noise_multiplier to the largest value that `fedsvd privacy plan` shows "
            "without noise_share."
        )
    return None

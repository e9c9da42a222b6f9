"""The schema of the group ``aggregation``."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedsvd.config.federation import FederationConfig
from fedsvd.config.group import ConfigGroup
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.config.shares import share_of
from fedsvd.errors import ConfigError


@dataclass(frozen=True)
class AggregationConfig(ConfigGroup):
    """How the server aggregates the clients' updates.

    Attributes:
        name: ``mean`` (weighted by number of examples), or ``trimmed_mean`` or ``median`` (per coordinate, all clients
            with equal weight; see `server.robust_mean`).
        trim_share: Fraction of a round's clients that ``trimmed_mean`` drops at each end, rounded down to whole
            clients. As many are dropped if replies are missing; a round with too few replies for that is skipped.
    """

    group: ClassVar[str] = "aggregation"

    name: Literal["mean", "trimmed_mean", "median"]
    trim_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.25

    def num_trimmed(self, num_sampled: int) -> int:
        """Return how many of a round's clients ``trimmed_mean`` drops at each end: so many may be malicious."""
        return math.floor(share_of(self.trim_share, num_sampled))

    def min_replies(self, num_sampled: int) -> int:
        """Return the minimum number of replies for which as many clients may be malicious as are in a full round."""
        return 2 * self.num_trimmed(num_sampled) + 1 if self.name == "trimmed_mean" else 1


def check_aggregation(aggregation: AggregationConfig, privacy: PrivacyConfig, federation: FederationConfig) -> None:
    """Reject robust aggregation where the server has only the sum of the updates, or where nothing would be trimmed.

    Raises:
        ConfigError: Robust aggregation with secure aggregation, client-level privacy or weights by the noise, or a
            ``trim_share`` that drops no client.
    """
    if aggregation.name == "mean":
        return
    sum_only_settings = {
        "federation.secure_aggregation = True": federation.secure_aggregation,
        "privacy.name = client_level": privacy.name == "client_level",
    }
    for setting, enabled in sum_only_settings.items():
        if enabled:
            raise ConfigError(
                f"aggregation.name = {aggregation.name} is not possible with {setting}: it needs the update of each "
                "client, but the server has only their sum. Use aggregation=mean, or change that setting."
            )
    if federation.weighting == "inverse_variance":
        raise ConfigError(
            f"federation.weighting = inverse_variance has no effect with aggregation.name = {aggregation.name}, which "
            "gives all clients equal weights: set federation.weighting=examples, or use aggregation=mean."
        )
    clients_per_round = federation.num_sampled
    if aggregation.name == "trimmed_mean" and aggregation.num_trimmed(clients_per_round) < 1:
        raise ConfigError(
            f"aggregation.trim_share = {aggregation.trim_share} drops none of the {clients_per_round} clients of a "
            f"round: give more than {1 / clients_per_round:.3g}, or use aggregation=median."
        )

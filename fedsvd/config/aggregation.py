"""The schema of the group ``aggregation``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fedsvd.config.federation import FederationConfig
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.config.validate import Range, check_fields
from fedsvd.errors import ConfigError


@dataclass(frozen=True)
class AggregationConfig:
    """What the server makes of the clients' updates.

    Attributes:
        name: ``mean`` (weighted by examples), ``trimmed_mean`` or ``median`` (in each coordinate, each client counted
            once; see `server.robust_mean`).
        trim_share: Share of the clients that ``trimmed_mean`` cuts off at each end, rounded down.
    """

    name: Literal["mean", "trimmed_mean", "median"]
    trim_share: Annotated[float, Range(0, 0.5, open_low=True, open_high=True)] = 0.25

    def __post_init__(self) -> None:
        check_fields(self, "aggregation")


def check_aggregation(aggregation: AggregationConfig, privacy: PrivacyConfig, federation: FederationConfig) -> None:
    """Refuse what needs each client's update where there is their sum alone.

    Raises:
        ConfigError: Secure sums, client-level privacy, or too few clients for any to be cut off.
    """
    if aggregation.name == "mean":
        return
    sums: dict[str, Any] = {
        "federation.secure_aggregation = True": federation.secure_aggregation,
        "privacy.name = client_level": privacy.name == "client_level",
    }
    for setting, chosen in sums.items():
        if chosen:
            raise ConfigError(
                f"aggregation.name = {aggregation.name} is not possible with {setting}: it needs each client's update, "
                "and there is only their sum. Take aggregation=mean, or leave that setting out."
            )
    in_a_round = federation.clients_per_round or federation.num_clients
    if aggregation.name == "trimmed_mean" and int(aggregation.trim_share * in_a_round) < 1:
        raise ConfigError(
            f"aggregation.trim_share = {aggregation.trim_share} cuts off nobody of the {in_a_round} clients of a "
            f"round: give more than {1 / in_a_round:.3g}, or take aggregation=median."
        )

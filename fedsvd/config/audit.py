"""The schema of the group ``audit``, which exists only in ``fedsvd audit``: other commands reject its keys."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass

from fedsvd.config.group import ConfigGroup
from fedsvd.config.types import Count, Fraction
from fedsvd.errors import ConfigError

Sabotage = Literal["none", "no_noise", "no_clipping"]


@dataclass(frozen=True)
class AuditConfig(ConfigGroup):
    """The attacks of a privacy audit.

    Attributes:
        partition_id: Partition of the attacked client.
        num_canaries: Number of canaries, each included in the client's data with probability 1/2. Each canary uses one
            parameter that is trained in every round, and no two share one. ``auto``: 4,000, or as many as there are
            parameters.
        confidence: Confidence level of the lower bound on ε.
        other_clients: Train the other clients of the federation too; false trains only the attacked client, which is
            cheaper and changes only the model that its rounds start from.
        num_shadow_models: Shadow models of the membership inference attack: an even number, because each is paired with
            one trained on the other half of the examples, and at least 4, to estimate a spread. 0 skips the attack.
        sabotage: Break the mechanism during this audit, to check that the audit detects it: ``no_noise``, or
            ``no_clipping`` (with unchanged noise).
    """

    group: ClassVar[str] = "audit"

    partition_id: NonNegativeInt
    num_canaries: Count | Literal["auto"]
    confidence: Fraction
    other_clients: bool
    num_shadow_models: NonNegativeInt
    sabotage: Sabotage

    def __post_init__(self) -> None:
        if self.num_shadow_models % 2 or self.num_shadow_models == 2:
            raise ConfigError(
                f"audit.num_shadow_models = {self.num_shadow_models} is invalid: give an even number from 4 up (shadow "
                "models come in pairs, and one pair shows no spread), or 0 to skip the membership inference attack."
            )

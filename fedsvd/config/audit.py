"""The schema of ``audit``, which only ``fedsvd audit`` has: a training run cannot even name its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fedsvd.config.types import Count, Fraction
from fedsvd.config.validate import Range, check_fields
from fedsvd.errors import ConfigError

Sabotage = Literal["none", "no_noise", "no_clipping"]


@dataclass(frozen=True)
class AuditConfig:
    """What is attacked, and how hard.

    Attributes:
        partition_id: The attacked client.
        num_canaries: Canaries, each put into the client's data by a fair coin; each takes a trained number of its own.
        confidence: Chance that the bound on ε holds.
        other_clients: Train the other clients of the federation too; false attacks one that trains alone, which is
            cheaper and changes only the model that its rounds start from.
        num_shadow_models: Trainings that the membership attack learns from: an even number, since each is paired with
            one on the other half of the examples, and at least 4, to see a spread. 0 leaves the attack out.
        sabotage: Break the mechanism in this audit alone, to see that the audit notices: ``no_noise``, or
            ``no_clipping`` (with the noise as it was).
    """

    partition_id: Annotated[int, Range(0)]
    num_canaries: Count
    confidence: Fraction
    other_clients: bool
    num_shadow_models: Annotated[int, Range(0)]
    sabotage: Sabotage

    def __post_init__(self) -> None:
        check_fields(self, "audit")
        if self.num_shadow_models % 2 or self.num_shadow_models == 2:
            raise ConfigError(
                f"audit.num_shadow_models = {self.num_shadow_models} is not allowed: give an even number from 4 up "
                "(they come in pairs, and one pair shows no spread), or 0 for no membership attack."
            )

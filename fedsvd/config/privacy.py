"""The schema of the group ``privacy``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsvd.config.types import Fraction, Positive
from fedsvd.config.validate import check_fields
from fedsvd.errors import ConfigError


@dataclass(frozen=True)
class PrivacyConfig:
    """The guarantee that each client gives to each of its examples, over the whole run.

    Attributes:
        name: ``dp_sgd`` (each client protects each of its examples, with DP-SGD), ``client_level`` (the server protects
            each client's whole data set, with noise in the aggregate), or ``none``: no clipping, no noise, no
            guarantee; the other fields mean nothing then.
        target_epsilon: ε of the run; noise is calibrated to it.
        target_delta: δ of the (ε, δ) guarantee.
        max_epsilon: Most ε of all runs that a client's ledger holds, this one included; null: ``target_epsilon``.
        max_grad_norm: Largest L2 norm of one example's gradient; longer ones are scaled down (``dp_sgd``).
        max_update_norm: Largest L2 norm of one client's update in a round; longer ones are scaled down
            (``client_level``).
        accountant: How the spend is counted: ``prv`` (tight, for δ from 1e-10) or ``rdp``.
        noise_multiplier: σ to use instead of the one that is calibrated; null: calibrated. What it costs is accounted
            for all the same.
        noise_share: Each client adds its share of the noise, so that the secure sum carries the whole (see
            `fedsvd.privacy.noise_share`); needs ``federation.secure_aggregation``.
        clipping_statistics: Clients also report how many gradients they clipped, and how long they were, under the same
            guarantee: half a percent more noise pays for it (see `fedsvd.privacy.clipping_statistics`).
        ledger_dir: Folder of the simulated clients' ledgers, kept from run to run as ``N.sqlite``; null: the run
            folder, where each run starts with nothing spent. A real client's own configuration names its ledger.
        secure_random: Batches and noise from a stream cipher that the operating system keys; false takes torch's
            generators, seeded by the operating system: faster, and not made to resist prediction.
    """

    name: Literal["dp_sgd", "client_level", "none"]
    target_epsilon: Positive = 6.0
    target_delta: Fraction = 1e-5
    max_grad_norm: Positive = 1.0
    max_update_norm: Positive = 1.0
    accountant: Literal["prv", "rdp"] = "prv"
    secure_random: bool = True
    max_epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    noise_share: bool = False
    clipping_statistics: bool = True
    ledger_dir: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "privacy")
        if self.max_epsilon is not None and self.max_epsilon < self.target_epsilon:
            raise ConfigError(
                f"privacy.max_epsilon = {self.max_epsilon} is below privacy.target_epsilon = {self.target_epsilon}: "
                "all runs together cannot cost less than this one; raise the first or lower the second."
            )

"""The schema of the group ``privacy``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass

from fedsvd.config.group import ConfigGroup
from fedsvd.config.types import Fraction, Text
from fedsvd.errors import ConfigError


@dataclass(frozen=True)
class PrivacyConfig(ConfigGroup):
    """The differential privacy guarantee, over the whole run.

    Attributes:
        name: ``dp_sgd`` (each client protects each of its examples, with DP-SGD), ``client_level`` (the server protects
            each client's whole data set, with noise in the aggregate), or ``none``: no clipping, no noise, no
            guarantee; the other keys then have no effect, but ``noise_share`` is refused.
        target_epsilon: ε of the run; the noise is calibrated to it.
        target_delta: δ of the (ε, δ) guarantee.
        max_epsilon: Largest total ε of all runs in a client's ledger, including this one; null: ``target_epsilon``.
        max_grad_norm: Largest L2 norm of one example's gradient; longer ones are scaled down (``dp_sgd``).
        head_clipping_share: c, the head's share of the clipping norm in rounds that train head and factors: the head's
            gradient is clipped to ``c · max_grad_norm``, that of the factors to ``√(1-c²) · max_grad_norm``
            (``dp_sgd``); null: both are clipped together.
        project_public_mean: Remove from each example's gradient of the factors, before it is clipped, the directions of
            the mean gradient over ``model.public_text`` (``dp_sgd``; see `fedsvd.runtime.public_mean`).
        standardize_inputs: Train A in coordinates in which the inputs that texts of ``model.public_text`` have in its
            layer have no mean and are half-whitened (``dp_sgd``; see `fedsvd.runtime.public_statistics`).
        max_update_norm: Largest L2 norm of one client's update in a round; longer ones are scaled down
            (``client_level``).
        accountant: Privacy accountant: ``prv`` (tight, for δ from 1e-10) or ``rdp``.
        noise_multiplier: Noise multiplier σ to use instead of the calibrated one; null: calibrated. The resulting ε is
            accounted for in both cases.
        noise_share: Each client adds its share of the noise, so that the secure sum carries all of it (see
            `fedsvd.privacy.noise_share`); needs ``federation.secure_aggregation``. All clients then have equal weights,
            also with ``federation.weighting=examples``.
        clipping_statistics: Clients also report how many gradients they clipped, and the gradients' norms, under the
            same guarantee, at the cost of half a percent more noise (see `fedsvd.privacy.clipping_statistics`). Not
            with secure aggregation, which hides what a single client sends.
        ledger_dir: Directory of the simulated clients' ledgers, ``N.sqlite``, which persist across runs; null: the run
            directory, so that each run starts with nothing spent. A real client names its ledger in its node
            configuration.
        secure_random: Draw batches and noise from a stream cipher keyed by the operating system; false uses torch's
            generators: faster, but with 2³² seeds only, which can all be tried. For measurements and tests, never for
            real data; a client with privacy limits refuses it.
    """

    group: ClassVar[str] = "privacy"

    name: Literal["dp_sgd", "client_level", "none"]
    target_epsilon: PositiveFloat = 6.0
    target_delta: Fraction = 1e-5
    max_grad_norm: PositiveFloat = 1.0
    head_clipping_share: Fraction | None = None
    max_update_norm: PositiveFloat = 1.0
    accountant: Literal["prv", "rdp"] = "prv"
    secure_random: bool = True
    max_epsilon: PositiveFloat | None = None
    noise_multiplier: PositiveFloat | None = None
    noise_share: bool = False
    clipping_statistics: bool = True
    ledger_dir: Text | None = None
    project_public_mean: bool = False
    standardize_inputs: bool = False

    def __post_init__(self) -> None:
        if self.name != "none" and self.max_epsilon is not None and self.max_epsilon < self.target_epsilon:
            raise ConfigError(
                f"privacy.max_epsilon = {self.max_epsilon} is below privacy.target_epsilon = {self.target_epsilon}: "
                "the total over all runs cannot be less than the ε of this run. Raise the first or lower the second."
            )
        if self.name == "client_level" and self.head_clipping_share is not None:
            raise ConfigError(
                f"privacy.head_clipping_share = {self.head_clipping_share} is not possible with privacy.name = "
                "client_level, where privacy.max_update_norm bounds the norm of a client's whole update: set it to "
                "null, or use privacy=dp_sgd."
            )
        for key in ("project_public_mean", "standardize_inputs"):
            if getattr(self, key) and self.name == "client_level":
                raise ConfigError(
                    f"privacy.{key} = True is not possible with privacy.name = client_level, which clips no example's "
                    "gradient: set it to false, or use privacy=dp_sgd."
                )

    @property
    def projects_gradients(self) -> bool:
        """Whether ``project_public_mean`` has an effect: only DP-SGD clips the gradients of examples."""
        return self.name == "dp_sgd" and self.project_public_mean

    @property
    def preconditions_a(self) -> bool:
        """Whether ``standardize_inputs`` has an effect: only DP-SGD clips the gradients of examples."""
        return self.name == "dp_sgd" and self.standardize_inputs

    @property
    def hides_sampling(self) -> bool:
        """Whether the guarantee assumes that only the server knows which clients a round has sampled."""
        return self.name == "client_level"

    @property
    def is_charged_in_advance(self) -> bool:
        """Whether a client is charged for all rounds at once: where the server adds the noise, all cost it the same."""
        return self.name == "client_level" and not self.noise_share

"""Noise that the clients of a secure sum add together.

Each of n clients adds N(0, τ²/n_min), where τ is the noise that the sum must carry and n_min the fewest clients with
which a round counts (``federation.min_survivors``). The sum over any m ≥ n_min survivors then carries noise of variance
m τ² / n_min ≥ τ². The server sees nothing but that sum, so that it is as if one party had added the whole.

Client level: τ = σ S, and each client's whole update is clipped to S: the sum has sensitivity S to any one client.

Example level (DP-SGD): τ = σ C, one step a round. Client k sends B − η gₖ with
``gₖ = (Σ clip(∂) + N(0, σ² C² / n_min)) / b``. With the same b (``train.batch_size``) and η for all, and every client
counting alike, the sum of the Bₖ is a constant less (η / b) · (Σₖ Σ clip(∂) + noise of variance ≥ σ² C²). One example
moves it by at most (η / b) C: the Gaussian mechanism with multiplier σ, subsampled by the Poisson rate of the example's
own client. A second step would start from the client's own first one, and what it tells of that carries its own small
share alone: refused.

What must hold: the server follows the protocol (it may look at all it sees), at least n_min clients survive a round,
and none of them gives its own noise away. Noise is rounded to fixed point after it was added, which is post-processing.
"""

from __future__ import annotations

import math

from fedsvd.config import Config

ASSUMPTIONS = (
    "the server follows the protocol, whatever it makes of what it sees (honest but curious)",
    "at least federation.min_survivors clients survive a round (checked: with fewer the round is skipped)",
    "no survivor gives its own share of the noise away",
)


def client_noise_multiplier(noise_multiplier: float, config: Config) -> float:
    """Return the part of the noise multiplier that one client adds: all of it, or 1/√n_min with ``noise_share``."""
    if not config.privacy.noise_share:
        return noise_multiplier
    return noise_multiplier / math.sqrt(config.federation.min_survivors)


def equal_weights(config: Config) -> bool:
    """Say whether every client counts alike in the mean, rather than by its number of examples."""
    alike = config.privacy.noise_share or config.privacy.name == "client_level"
    return alike or config.federation.weighting == "uniform"

"""Distributed noise: under secure aggregation, each client adds a share of the noise that the sum needs.

Each of n clients adds N(0, τ²/n_min), where τ is the standard deviation of the noise that the sum must carry and n_min
is the minimum number of clients for a valid round (``federation.min_survivors``). The sum over any m ≥ n_min survivors
then carries noise of variance m τ² / n_min ≥ τ². The server sees nothing but that sum, so the result is as if one party
had added all the noise.

Client level: τ = σ S, and each client's whole update is clipped to S. The sum has sensitivity S to any one client.

Example level (DP-SGD): τ = σ C, with one step per round. Client k sends B − η gₖ with
``gₖ = (Σ clip(∂) + N(0, σ² C² / n_min)) / b``. If b (``train.batch_size``) and η are the same for all clients, and all
clients have equal weights, the sum of the Bₖ is a constant minus (η / b) · (Σₖ Σ clip(∂) + noise of variance ≥ σ² C²).
One example changes it by at most (η / b) C. Maps of gradients leave this as it is: each client maps its examples'
gradients before it clips them, and the server maps the noised mean (`fedsvd.privacy.gradient_maps`). This is the
Gaussian mechanism with noise multiplier σ, subsampled at the Poisson rate of the example's own client. σ must be the
same for all clients: ``privacy.noise_multiplier``, or calibrated for one ``train.sample_rate``. With
``train.sample_rate=1.0``, b is a public constant near the mean size of the clients' data, and the mean of the Bₖ
weights all examples of all clients equally. A second step would start from the result of the client's own first step,
and what it reveals about that result would be protected by the client's own small share alone. Several steps per round
are therefore refused.

Assumptions: the server follows the protocol (it may inspect everything it receives), at least n_min clients survive a
round, and none of them reveals its own noise.

Each client rounds its own values, with its share of the noise, and not their sum. This is no different from rounding
the noisy sum where a share's standard deviation is at least three times the resolution of what is sent. A run with less
is refused (`fedsvd.secagg.rounding` has the proof, `fedsvd.runtime.rounding` the check).
"""

from __future__ import annotations

import math

from fedsvd.config import Config

ASSUMPTIONS = (
    "the server follows the protocol, but may inspect everything it receives (honest but curious)",
    "at least federation.min_survivors clients survive a round (checked: with fewer, the round is skipped)",
    "no survivor reveals its own share of the noise",
)


def client_noise_multiplier(noise_multiplier: float, config: Config) -> float:
    """Return the noise multiplier that one client adds: the full one, or 1/√n_min of it with ``noise_share``."""
    if not config.privacy.noise_share:
        return noise_multiplier
    return noise_multiplier / math.sqrt(config.federation.min_survivors)


def equal_weights(config: Config) -> bool:
    """Return whether all clients have equal weights in the mean, instead of weights by their number of examples."""
    weights_must_be_equal = config.privacy.noise_share or config.privacy.name == "client_level"
    return weights_must_be_equal or config.federation.weighting == "uniform"


def discloses_counts(config: Config) -> bool:
    """Return whether the server can learn each client's number of examples.

    A secure sum whose weights are these numbers has their total. Two sums whose clients differ, because some were not
    sampled or have dropped out, then tell the numbers of those that are in one of them only.
    """
    federation = config.federation
    return federation.sends_counts or (federation.secure_aggregation and not equal_weights(config))

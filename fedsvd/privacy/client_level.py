"""Client-level differential privacy: one client's whole update is what nobody can tell from its absence.

DP-FedAvg (McMahan et al. 2018, arXiv 1710.06963, Algorithm 1, with a fixed denominator): in each round every client
takes part with chance q and clips its update Δₖ to norm S, and the model moves by
``(Σ clip(Δₖ) + N(0, σ² S²)) / (q · n)``. That is the Poisson-subsampled Gaussian mechanism over clients, so the
accountants of `fedsvd.privacy.accounting` apply, with a round for a step; amplification counts on nobody but the server
knowing who was drawn. Where A's rows are orthonormal, ‖ΔB‖ = ‖ΔB A‖: the clipping bounds the update of the weights
(before ``lora_alpha / rank``) as it bounds that of B.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedsvd.config import FederationConfig, PrivacyConfig, TrainConfig
from fedsvd.privacy.accounting import Spend, calibrate
from fedsvd.privacy.randomness import Randomness


def run_spend(privacy: PrivacyConfig, train: TrainConfig, federation: FederationConfig) -> Spend:
    """Return what a run costs each client, whether it is drawn or not: a step a round, at the rate of being drawn."""
    sample_rate = client_sample_rate(federation)
    noise_multiplier = privacy.noise_multiplier or calibrate(
        privacy.target_epsilon, privacy.target_delta, sample_rate, train.num_rounds, privacy.accountant
    )
    return Spend(noise_multiplier, sample_rate, train.num_rounds)


def client_sample_rate(federation: FederationConfig) -> float:
    """Return the chance q of a client to be in a round."""
    return (federation.clients_per_round or federation.num_clients) / federation.num_clients


def clip_update(update: Sequence[Tensor], max_update_norm: float) -> list[Tensor]:
    """Scale an update down to a joint L2 norm of at most ``max_update_norm``, in float64.

    Args:
        update: The tensors of one client's update, of any shapes.
        max_update_norm: S.

    Returns:
        float64 tensors of the same shapes.
    """
    exact = [tensor.to(torch.float64) for tensor in update]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in exact]))
    factor = min(1.0, max_update_norm / norm.item()) if norm > 0 else 1.0
    return [tensor * factor for tensor in exact]


def clipped_sum(updates: Iterable[Sequence[Tensor]], like: Sequence[Tensor], max_update_norm: float) -> list[Tensor]:
    """Return ``Σ clip(Δₖ)`` in float64, shaped as ``like``; each update is clipped, whatever its client did."""
    total = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in like]
    for update in updates:
        for sum_, tensor in zip(total, clip_update(update, max_update_norm), strict=True):
            sum_.add_(tensor)
    return total


def add_noise(tensors: Sequence[Tensor], std: float, randomness: Randomness) -> list[Tensor]:
    """Add ``N(0, std²)`` to every entry."""
    return [tensor + randomness.normal(tensor, std) for tensor in tensors]

"""Client-level differential privacy: the unit of protection is the whole update of one client.

DP-FedAvg (McMahan et al. 2018, arXiv 1710.06963, Algorithm 1, with a fixed denominator): in each round, every client
participates with probability q and clips its update Δₖ to norm S, and the model changes by
``(Σ clip(Δₖ) + N(0, σ² S²)) / (q · n)``. This is the Poisson-subsampled Gaussian mechanism over clients, so the
accountants of `fedsvd.privacy.accounting` apply, with one step per round. Amplification by sampling requires that only
the server knows which clients were sampled. If the rows of A are orthonormal, ‖ΔB‖ = ‖ΔB A‖: clipping then bounds the
update of the weights (before scaling by ``lora_alpha / rank``) by the same value as the update of B. In a secure sum,
where the server cannot clip, clients clip to slightly less than S, so that rounding does not exceed it
(`fedsvd.runtime.rounding`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fedsvd.config import FederationConfig, PrivacyConfig, TrainConfig
from fedsvd.privacy.accounting import Spend, calibrate

if TYPE_CHECKING:
    from torch import Tensor

    from fedsvd.privacy.randomness import Randomness


def run_spend(privacy: PrivacyConfig, train: TrainConfig, federation: FederationConfig) -> Spend:
    """Return what a run costs each client, sampled or not: one step per round, at the clients' sample rate."""
    sample_rate = client_sample_rate(federation)
    noise_multiplier = privacy.noise_multiplier or calibrate(
        privacy.target_epsilon, privacy.target_delta, sample_rate, train.num_rounds, privacy.accountant
    )
    return Spend(noise_multiplier, sample_rate, train.num_rounds)


def client_sample_rate(federation: FederationConfig) -> float:
    """Return the chance q of a client to be in a round."""
    return federation.num_sampled / federation.num_clients


def clip_update(update: Sequence[Tensor], max_update_norm: float) -> list[Tensor]:
    """Scale an update down to a joint L2 norm of at most ``max_update_norm``, in float64.

    Args:
        update: The tensors of one client's update, of any shapes.
        max_update_norm: The clipping norm S.

    Returns:
        float64 tensors of the same shapes.
    """
    # Plans need only the accounting in this module, so torch is loaded with the first update.
    import torch

    exact = [tensor.to(torch.float64) for tensor in update]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in exact]))
    factor = min(1.0, max_update_norm / norm.item()) if norm > 0 else 1.0
    return [tensor * factor for tensor in exact]


def clipped_sum(updates: Iterable[Sequence[Tensor]], like: Sequence[Tensor], max_update_norm: float) -> list[Tensor]:
    """Return ``Σ clip(Δₖ)`` in float64, with the shapes of ``like``.

    Every update is clipped here, whether or not its client clipped it.
    """
    import torch

    total = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in like]
    for update in updates:
        for sum_, tensor in zip(total, clip_update(update, max_update_norm), strict=True):
            sum_.add_(tensor)
    return total


def add_noise(tensors: Sequence[Tensor], std: float, randomness: Randomness) -> list[Tensor]:
    """Return the tensors with independent noise from ``N(0, std²)`` added to every entry."""
    return [tensor + randomness.normal(tensor, std) for tensor in tensors]

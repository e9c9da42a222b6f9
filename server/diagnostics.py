"""Diagnostics of a round: singular values, rank, subspace rotation, signal-to-noise ratio, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fedsvd.config import Config
from fedsvd.lora.adapter import Adapter, Part, as_plain_lora
from fedsvd.lora.refactorize import orthonormal_rows
from fedsvd.methods.aggregate import Replies, average, mean_noise_std
from fedsvd.runtime.round_maps import preconditions_a
from fedsvd.wire.train_messages import ClientReport


def site_diagnostics(before: Adapter, after: Adapter) -> dict[str, dict[str, Any]]:
    """Compute the diagnostics of each site after a round.

    Returns:
        By site: ``singular_values`` of B A in descending order (with a core, of B C A; merged weights are excluded);
        ``effective_rank``, the exponential of the entropy of the normalized singular values (Roy and Vetterli 2007), or
        0 if the product is zero; ``nuclear_norm``, the sum of the singular values; ``principal_angle``, the largest
        principal angle in degrees between the row spaces of the old and the new A.
    """
    unmerged = as_plain_lora(after.with_parts({"base_left": {}, "base_right": {}}))
    result = {}
    for name, A in unmerged.A.items():
        values = _singular_values(unmerged.B[name], A)
        total = float(values.sum())
        result[name] = {
            "singular_values": [float(value) for value in values],
            "effective_rank": _effective_rank(values / total) if total > 0 else 0.0,
            "nuclear_norm": total,
            "principal_angle": _largest_angle(before.A[name], after.A[name]),
        }
    return result


def update_signal_to_noise(before: Adapter, replies: Replies, config: Config) -> float | None:
    """Estimate the signal-to-noise ratio of a round's mean update.

    Args:
        before: The adapter that the clients started from.
        replies: The replies, or one reply with their mean.
        config: The run's configuration.

    Returns:
        See `signal_to_noise`. None if the noise differs between the entries of a factor: if
        ``privacy.standardize_inputs`` maps the noise in A, or some clients lack entries (``federation.client_ranks``).
    """
    parts = replies[0].parts
    has_lower_ranks = min(config.federation.client_ranks or [config.model.rank]) < config.model.rank
    if preconditions_a(config, parts) or (has_lower_ranks and set(parts) - {"head"}):
        return None
    return signal_to_noise(before, average(before, replies), mean_noise_std(replies), head_noise_ratio(config))


def head_noise_ratio(config: Config) -> float:
    """Return the noise in the head relative to that in the factors.

    A client's noise is scaled by the learning rate. Under client-level privacy, all entries have the same noise.
    """
    train = config.train
    if config.privacy.name == "client_level" or train.head_learning_rate is None:
        return 1.0
    return train.head_learning_rate / train.learning_rate


def signal_to_noise(before: Adapter, after: Adapter, noise_std: float, head_ratio: float = 1.0) -> float | None:
    """Estimate the signal-to-noise ratio of a mean update: ``√(max(0, ‖Δ‖² − N) / N)`` with ``N = Σ s²``.

    Args:
        before: The adapter that the clients started from.
        after: The plain mean of the adapters that they sent, in the same coordinates.
        noise_std: s, the standard deviation of the noise in each entry of the factors.
        head_ratio: The same for the head, divided by s.

    Returns:
        The ratio, or None without noise. It is computed from a noisy update and public numbers, so it costs no privacy.
    """
    if noise_std <= 0:
        return None
    parts: tuple[Part, ...] = ("A", "B", "core", "head")
    energy = noise_energy = 0.0
    for part in parts:
        std = noise_std * (head_ratio if part == "head" else 1.0)
        for name, old in before.part(part).items():
            new = after.part(part)[name]
            if not torch.equal(old, new):
                energy += float((new.double() - old.double()).square().sum())
                noise_energy += new.numel() * std**2
    return math.sqrt(max(0.0, energy - noise_energy) / noise_energy) if noise_energy else None


def mean_clipping_statistics(reports: Iterable[ClientReport]) -> dict[str, float | None]:
    """Average the clients' clipping statistics: clipped share and mean gradient norm; None if no client reports one."""
    reports = list(reports)
    result: dict[str, float | None] = {}
    for key in ("clipped_share", "mean_grad_norm"):
        values = [value for report in reports if (value := getattr(report, key)) is not None]
        result[key] = sum(values) / len(values) if values else None
    return result


def _singular_values(B: Tensor, A: Tensor) -> Tensor:
    left, right = torch.linalg.qr(B.double()).R, torch.linalg.qr(A.double().mT).R
    values: Tensor = torch.linalg.svdvals(left @ right.mT)
    return values


def _effective_rank(shares: Tensor) -> float:
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def _largest_angle(old: Tensor, new: Tensor) -> float:
    cosines = torch.linalg.svdvals(orthonormal_rows(old.double()) @ orthonormal_rows(new.double()).mT)
    return math.degrees(math.acos(min(1.0, float(cosines.min()))))

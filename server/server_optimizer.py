"""Optimisers that the server runs on the clients' mean update: post-processing, so that they cost no privacy.

With ``Δ = Σ pₖ Xₖ − X`` (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2; momentum as in Hsu et al. 2019,
arXiv 1909.06335):

    momentum   m ← β m + Δ                                       X ← X + η m
    adam       m ← β m + (1 − β) Δ,  v ← β₂ v + (1 − β₂) Δ²      X ← X + η m / (√v + τ)

A refactorization writes the same product in other coordinates. Where ``A ← Rᵀ A``, an update of B becomes ``m R⁻ᵀ`` in
the new ones (``m V`` for an orthogonal R = V), and an update of A becomes ``R⁻¹ m`` where ``B ← B R``. With m carried
along in this way, momentum moves B A as if there had been no refactorization at all. Adam's v, a variance for each
coordinate, is carried along as variances of independent numbers are, by the squares of the same entries: what Adam does
depends on the coordinates, and no rule can change that.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsvd.config import TrainConfig
from fedsvd.lora.adapter import PARTS, Adapter, Part
from fedsvd.methods.aggregate import Replies, Reply, average, mean_noise_std
from fedsvd.methods.method import State, Step

_FIRST, _SECOND = "first", "second"


def apply_server_optimizer(
    adapter: Adapter, replies: Replies, moments: State, config: TrainConfig
) -> tuple[Replies, State]:
    """Turn the clients' replies into the one that the server's optimiser makes of them.

    Args:
        adapter: What the clients started from.
        replies: At least one.
        moments: What this returned in the round before; empty at first.
        config: With ``server_optimizer`` and its numbers.

    Returns:
        The replies (as they came, for ``none``), and the optimiser's state.
    """
    if config.server_optimizer == "none":
        return replies, {}
    mean = average(adapter, replies)
    moved: dict[Part, dict[str, Tensor]] = {}
    kept = {key: dict(named) for key, named in moments.items()}
    for part in replies[0].parts:
        moved[part] = {}
        first, second = kept.setdefault(f"{_FIRST}.{part}", {}), kept.setdefault(f"{_SECOND}.{part}", {})
        for name, old in adapter.part(part).items():
            delta = mean.part(part)[name].double() - old.double()
            step = _step(delta, name, first, second, config)
            moved[part][name] = (old.double() + config.server_learning_rate * step).to(old.dtype)
    examples = sum(reply.num_examples for reply in replies)
    return [Reply(0, examples, moved, mean_noise_std(replies))], {key: named for key, named in kept.items() if named}


def transform_optimizer_state(moments: State, step: Step, before: Adapter) -> State:
    """Carry the optimiser's state over to the coordinates after a server step.

    A factor whose partner was replaced, rather than rotated, starts from nothing: its old updates mean nothing beside
    the new partner.

    Args:
        moments: As `apply_server_optimizer` returned it.
        step: What the method made of the round.
        before: The adapter before the step.
    """
    kept = {key: dict(named) for key, named in moments.items()}
    partners: dict[Part, Part] = {"B": "A", "A": "B"}
    for part, partner in partners.items():
        rotations = step.rotations.get(partner)
        trained = part in _trained(moments)
        if trained and rotations is not None:
            _carry(kept, part, rotations)
        elif trained and partner not in _trained(moments) and _replaced(before, step.adapter, partner):
            kept = {key: named for key, named in kept.items() if not key.endswith(f".{part}")}
    return kept


def _step(delta: Tensor, name: str, first: dict[str, Tensor], second: dict[str, Tensor], config: TrainConfig) -> Tensor:
    beta = config.server_momentum
    held = first.get(name, torch.zeros_like(delta))
    if config.server_optimizer == "momentum":
        first[name] = beta * held + delta
        return first[name]
    first[name] = beta * held + (1 - beta) * delta
    squares = second.get(name, torch.zeros_like(delta))
    second[name] = config.server_beta2 * squares + (1 - config.server_beta2) * delta**2
    return first[name] / (second[name].sqrt() + config.server_tau)


def _carry(kept: dict[str, dict[str, Tensor]], part: Part, rotations: Mapping[str, Tensor]) -> None:
    for name, R in rotations.items():
        inverse = torch.linalg.inv(R.double())
        for key, matrix in ((f"{_FIRST}.{part}", inverse), (f"{_SECOND}.{part}", inverse**2)):
            held = kept.get(key, {}).get(name)
            if held is not None:
                kept[key][name] = held @ matrix.mT if part == "B" else matrix @ held


def _trained(moments: State) -> set[Part]:
    return {part for part in PARTS if f"{_FIRST}.{part}" in moments}


def _replaced(before: Adapter, after: Adapter, part: Part) -> bool:
    return any(not torch.equal(old, after.part(part)[name]) for name, old in before.part(part).items())

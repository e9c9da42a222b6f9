"""Server optimizers, applied to the clients' mean update. They are post-processing, so they cost no privacy.

With ``Δ = Σ pₖ Xₖ − X`` (Reddi et al. 2021, arXiv 2003.00295, Algorithm 2; momentum as in Hsu et al. 2019,
arXiv 1909.06335):

    momentum   m ← β m + Δ                                       X ← X + η m
    adam       m ← β m + (1 − β) Δ,  v ← β₂ v + (1 − β₂) Δ²      X ← X + η m / (√v + τ)

A refactorization expresses the same product in other coordinates. After ``A ← Rᵀ A``, an update m of B becomes
``m R⁻ᵀ`` (``m V`` for an orthogonal R = V); after ``B ← B R``, an update m of A becomes ``R⁻¹ m``. With m transformed
in this way, momentum changes B A as if there had been no refactorization. Adam's v contains a variance per coordinate
and is transformed like the variances of independent variables, with the squares of the same matrix entries. The result
of Adam nevertheless depends on the choice of coordinates, and no transformation can change that.
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
    """Apply the server optimizer to the clients' replies.

    Args:
        adapter: The adapter that the clients started from.
        replies: At least one reply.
        moments: The optimizer state that the previous round returned; empty at first.
        config: The configuration with ``server_optimizer`` and its settings.

    Returns:
        One reply with the optimizer's result (for ``none``, the replies unchanged), and the optimizer state.
    """
    if config.server_optimizer == "none":
        return replies, {}
    mean = average(adapter, replies)
    updated: dict[Part, dict[str, Tensor]] = {}
    state = {key: dict(tensors) for key, tensors in moments.items()}
    for part in replies[0].parts:
        updated[part] = {}
        first, second = state.setdefault(f"{_FIRST}.{part}", {}), state.setdefault(f"{_SECOND}.{part}", {})
        for name, old in adapter.part(part).items():
            delta = mean.part(part)[name].double() - old.double()
            step = _step(delta, name, first, second, config)
            updated[part][name] = (old.double() + config.server_learning_rate * step).to(old.dtype)
    examples = sum(reply.num_examples for reply in replies)
    return [Reply(0, examples, updated, mean_noise_std(replies))], {
        key: tensors for key, tensors in state.items() if tensors
    }


def transform_optimizer_state(moments: State, step: Step, before: Adapter) -> State:
    """Transform the optimizer state to the coordinates after a server step.

    If a factor's partner was replaced rather than rotated, the factor's state is reset, since earlier updates are
    meaningless for the new partner.

    Args:
        moments: The state that `apply_server_optimizer` returned.
        step: The method's server step.
        before: The adapter before the step.
    """
    state = {key: dict(tensors) for key, tensors in moments.items()}
    partners: dict[Part, Part] = {"B": "A", "A": "B"}
    for part, partner in partners.items():
        rotations = step.rotations.get(partner)
        has_moments = part in _parts_with_moments(moments)
        if has_moments and rotations is not None:
            _transform(state, part, rotations)
        elif (
            has_moments and partner not in _parts_with_moments(moments) and _is_replaced(before, step.adapter, partner)
        ):
            state = {key: tensors for key, tensors in state.items() if not key.endswith(f".{part}")}
    return state


def _step(delta: Tensor, name: str, first: dict[str, Tensor], second: dict[str, Tensor], config: TrainConfig) -> Tensor:
    beta = config.server_momentum
    previous = first.get(name, torch.zeros_like(delta))
    if config.server_optimizer == "momentum":
        first[name] = beta * previous + delta
        return first[name]
    first[name] = beta * previous + (1 - beta) * delta
    previous_square = second.get(name, torch.zeros_like(delta))
    second[name] = config.server_beta2 * previous_square + (1 - config.server_beta2) * delta**2
    return first[name] / (second[name].sqrt() + config.server_tau)


def _transform(state: dict[str, dict[str, Tensor]], part: Part, rotations: Mapping[str, Tensor]) -> None:
    for name, R in rotations.items():
        inverse = torch.linalg.inv(R.double())
        for key, matrix in ((f"{_FIRST}.{part}", inverse), (f"{_SECOND}.{part}", inverse**2)):
            moment = state.get(key, {}).get(name)
            if moment is not None:
                state[key][name] = moment @ matrix.mT if part == "B" else matrix @ moment


def _parts_with_moments(moments: State) -> set[Part]:
    return {part for part in PARTS if f"{_FIRST}.{part}" in moments}


def _is_replaced(before: Adapter, after: Adapter, part: Part) -> bool:
    return any(not torch.equal(old, after.part(part)[name]) for name, old in before.part(part).items())

"""The membership attack: was an example of the client in its training data? Asked of the final model alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsvd.audit.mechanism import audited_mechanism
from fedsvd.audit.simulated_rounds import Participant, simulate_rounds
from fedsvd.config import Config
from fedsvd.config.audit import AuditConfig
from fedsvd.errors import DataError
from fedsvd.lora import peft_model
from fedsvd.privacy.dp_sgd import LossFunction
from fedsvd.privacy.membership import Roc, lira_scores, logit_confidence, roc
from fedsvd.privacy.plan import calibrate_run
from fedsvd.runtime.data import load_client_data
from fedsvd.runtime.losses import per_example_losses
from fedsvd.runtime.model import load_model

_LEAST_EXAMPLES = 4


@dataclass(frozen=True)
class MembershipAttack:
    """How well the final model tells members from others.

    Attributes:
        loss_threshold: By a threshold on the loss (Yeom et al. 2018, arXiv 1709.01604).
        lira: By likelihood ratios from shadow models (Carlini et al. 2022, arXiv 2112.03570).
        num_examples: Members and others, half of each.
    """

    loss_threshold: Roc
    lira: Roc
    num_examples: int


def attack_membership(
    config: Config, settings: AuditConfig, rng: np.random.Generator, tell: Callable[[int, int], None]
) -> MembershipAttack:
    """Train on a random half of the client's examples, and ask the model which half it was.

    The shadow models of the attack are trained the same way on halves of the same examples, in pairs, so that each
    example is in one half of them. Simpler than the paper: one query an example, no augmentation, few shadow models
    (hence a spread that all examples share), and the client trains alone, which is the best case of the attacker.

    Args:
        config: The run.
        settings: Whom to attack, with how many shadow models, and what to break.
        rng: Draws the halves.
        tell: Called with the number of trainings done and of all.

    Raises:
        DataError: A client of too few examples.
    """
    silo = load_client_data(config, settings.partition_id)
    total, losses = len(silo.examples), per_example_losses(silo, config)
    if total < _LEAST_EXAMPLES:
        raise DataError(
            f"client {settings.partition_id} holds {total} examples; an attack on halves of them needs "
            f"{_LEAST_EXAMPLES}. Attack another client (audit.partition_id), or set audit.num_shadow_models=0."
        )
    members = _halves(total, 1, rng)[0]
    inside = _halves(total, settings.num_shadow_models, rng)
    measured = []
    for done, half in enumerate([members, *inside]):
        tell(done, 1 + len(inside))
        measured.append(_losses_after_training(config, settings, losses, half))
    target, shadows = measured[0], np.stack(measured[1:])
    likelihoods = lira_scores(logit_confidence(target), logit_confidence(shadows), inside)
    return MembershipAttack(roc(-target, members), roc(likelihoods, members), total)


def _halves(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random halves, shape (count, total); the second of each pair is what the first leaves out."""
    halves: list[np.ndarray] = []
    while len(halves) < count:
        chosen = np.isin(np.arange(total), rng.permutation(total)[: total // 2])
        halves += [chosen, ~chosen]
    return np.stack(halves[:count])


def _losses_after_training(config: Config, settings: AuditConfig, losses: LossFunction, half: np.ndarray) -> np.ndarray:
    chosen = np.flatnonzero(half).tolist()

    def of_chosen(model: nn.Module, positions: Sequence[int]) -> Tensor:
        return losses(model, [chosen[i] for i in positions])

    mechanism = audited_mechanism(config, calibrate_run(config, len(chosen)), settings.sabotage)
    adapter = simulate_rounds(config, [Participant(settings.partition_id, of_chosen, len(chosen), mechanism)])
    model = load_model(config)
    peft_model.write(model, adapter)
    model.eval()
    size = config.train.eval_batch_size
    with torch.no_grad():
        parts = [losses(model, range(start, min(start + size, len(half)))) for start in range(0, len(half), size)]
    measured: np.ndarray = torch.cat(parts).double().cpu().numpy()
    return measured

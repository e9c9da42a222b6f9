"""Membership inference from the final model: whether an example was part of the client's training data."""

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
from fedsvd.privacy.grad_sample_modes import LossFunction
from fedsvd.privacy.membership import Roc, lira_scores, logit_confidence, roc
from fedsvd.privacy.plan import calibrate_run
from fedsvd.runtime.data import load_client_data
from fedsvd.runtime.losses import padded_widths, per_example_losses
from fedsvd.runtime.model import load_model

_MIN_EXAMPLES = 4


@dataclass(frozen=True)
class MembershipAttack:
    """How well the final model separates members from non-members.

    Attributes:
        loss_threshold: ROC of a threshold on the loss (Yeom et al. 2018, arXiv 1709.01604).
        lira: ROC of likelihood ratios from shadow models (Carlini et al. 2022, arXiv 2112.03570).
        num_examples: Number of examples, half of them members.
    """

    loss_threshold: Roc
    lira: Roc
    num_examples: int


def attack_membership(
    config: Config, settings: AuditConfig, rng: np.random.Generator, on_progress: Callable[[int, int], None]
) -> MembershipAttack:
    """Train on a random half of the client's examples, and infer from the final model which half it was.

    Shadow models are trained in the same way on random halves of the same examples, in pairs of complementary halves,
    so that each example is a member for half of the shadow models. The attack is simpler than in the paper: one query
    per example, no augmentation, and few shadow models, so that all examples share one standard deviation. The client
    trains alone, which is the best case for the attacker.

    Args:
        config: The configuration of the run.
        settings: The client to attack, the number of shadow models, and the sabotage.
        rng: Random generator that draws the halves.
        on_progress: Called with the number of models trained so far and the total.

    Raises:
        DataError: The client has too few examples.
    """
    client_data = load_client_data(config, settings.partition_id)
    total, losses = len(client_data.examples), per_example_losses(client_data, config)
    if total < _MIN_EXAMPLES:
        raise DataError(
            f"client {settings.partition_id} holds {total} examples, but membership inference needs at least "
            f"{_MIN_EXAMPLES}. Attack another client (audit.partition_id), or set audit.num_shadow_models=0."
        )
    members = _halves(total, 1, rng)[0]
    shadow_members = _halves(total, settings.num_shadow_models, rng)
    final_losses = []
    for done, half in enumerate([members, *shadow_members]):
        on_progress(done, 1 + len(shadow_members))
        final_losses.append(_losses_after_training(config, settings, losses, half))
    target, shadows = final_losses[0], np.stack(final_losses[1:])
    likelihoods = lira_scores(logit_confidence(target), logit_confidence(shadows), shadow_members)
    return MembershipAttack(roc(-target, members), roc(likelihoods, members), total)


def _halves(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random halves as masks, shape (count, total); the second of each pair is the complement of the first."""
    halves: list[np.ndarray] = []
    while len(halves) < count:
        chosen = np.isin(np.arange(total), rng.permutation(total)[: total // 2])
        halves += [chosen, ~chosen]
    return np.stack(halves[:count])


def _losses_after_training(config: Config, settings: AuditConfig, losses: LossFunction, half: np.ndarray) -> np.ndarray:
    """Train on the examples of ``half`` and return the final losses of all examples."""
    chosen = np.flatnonzero(half).tolist()

    def chosen_losses(model: nn.Module, positions: Sequence[int]) -> Tensor:
        return losses(model, [chosen[i] for i in positions])

    mechanism = audited_mechanism(config, calibrate_run(config, len(chosen)), settings.sabotage)
    all_widths = padded_widths(load_client_data(config, settings.partition_id), config.model.max_length)
    widths = [all_widths[i] for i in chosen]
    attacked = Participant(settings.partition_id, chosen_losses, len(chosen), mechanism, widths=widths)
    adapter = simulate_rounds(config, [attacked])
    model = load_model(config)
    peft_model.write(model, adapter)
    model.eval()
    size = config.train.eval_batch_size
    with torch.no_grad():
        batches = [losses(model, range(start, min(start + size, len(half)))) for start in range(0, len(half), size)]
    final_losses: np.ndarray = torch.cat(batches).double().cpu().numpy()
    return final_losses

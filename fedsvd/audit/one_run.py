"""The one-run audit: canaries in one client's data, and guesses about them from the updates the server receives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsvd.audit.mechanism import CANARY_NORM, audited_mechanism
from fedsvd.audit.simulated_rounds import Observer, Participant, simulate_rounds
from fedsvd.config import Config
from fedsvd.config.audit import AuditConfig
from fedsvd.errors import DivergedError
from fedsvd.methods import build_run_method
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.audit_bound import Bound, audit_scores, largest_bound, plan_guesses
from fedsvd.privacy.canaries import DiracCanaries, draw_canaries
from fedsvd.privacy.membership import Roc, roc
from fedsvd.privacy.plan import calibrate_run
from fedsvd.runtime.data import load_client_data
from fedsvd.runtime.losses import padded_widths, per_example_losses
from fedsvd.runtime.model import initial_adapter
from fedsvd.runtime.round_parts import trained_parts
from fedsvd.training.schedule import learning_rate

# Fractions of the claimed noise for which a number of guesses is planned: all of it, too little, and hardly any.
_NOISE_FRACTIONS = (1.0, 0.3, 0.05)
# The number of canaries with audit.num_canaries=auto, if as many values are trained.
_AUTO_CANARIES = 4000


@dataclass(frozen=True)
class OneRunAudit:
    """The result of a one-run audit.

    Attributes:
        claimed_epsilon: ε of the attacked client over the whole run, according to the accountant.
        spend: The claimed mechanism.
        bound: Lower bound on ε that the attacker's guesses prove.
        largest_bound: Largest lower bound that an audit of this size can prove, if all guesses are correct.
        roc: ROC of the attacker's scores over all canaries.
    """

    claimed_epsilon: float
    spend: Spend
    bound: Bound
    largest_bound: float
    roc: Roc

    @property
    def contradicts_claim(self) -> bool:
        """Whether the lower bound exceeds the claimed ε."""
        return self.bound.epsilon > self.claimed_epsilon


def audit_one_run(config: Config, settings: AuditConfig, rng: np.random.Generator) -> OneRunAudit:
    """Run the federation once, with canaries in one client's data, and compute a lower bound on its ε.

    Args:
        config: The configuration of the run.
        settings: The client to attack, the number of canaries, and the sabotage.
        rng: Random generator that draws the canaries and flips their coins.

    Raises:
        PrivacyError: There are more canaries than trained values, or no noise satisfies the budget.
        DivergedError: An update is not finite.
    """
    privacy = config.privacy
    num_values = _num_trained_values(config)
    num_canaries = min(_AUTO_CANARIES, num_values) if settings.num_canaries == "auto" else settings.num_canaries
    canaries = draw_canaries(num_canaries, num_values, CANARY_NORM * privacy.max_grad_norm, rng)
    spend = calibrate_run(config, len(load_client_data(config, settings.partition_id).examples))
    test_confidence = 1 - (1 - settings.confidence) / len(_NOISE_FRACTIONS)
    tests = tuple(
        plan_guesses(
            canaries.total,
            fraction * spend.noise_multiplier,
            spend.sample_rate,
            spend.steps,
            privacy.target_delta,
            test_confidence,
            rng,
        )
        for fraction in _NOISE_FRACTIONS
    )
    scores = _attack(config, settings, canaries)
    return OneRunAudit(
        epsilon([spend], privacy.target_delta, privacy.accountant),
        spend,
        audit_scores(scores, canaries.included, tests, privacy.target_delta, settings.confidence),
        largest_bound(canaries.total, privacy.target_delta, settings.confidence, len(_NOISE_FRACTIONS)),
        roc(scores, canaries.included),
    )


def _attack(config: Config, settings: AuditConfig, canaries: DiracCanaries) -> np.ndarray:
    """Return each canary's score: its evidence summed over rounds, with updates converted back to gradient sums."""
    scores = np.zeros(canaries.total)
    train = config.train
    # With other optimizers, an update is not the plain sum of the steps' gradients, so the contribution of the real
    # data cannot be subtracted.
    plain_sgd = train.optimizer == "sgd" and train.momentum == 0 and train.weight_decay == 0
    num_examples = len(load_client_data(config, settings.partition_id).examples)
    divisor = calibrate_run(config, num_examples).sample_rate * num_examples

    method = build_run_method(config)
    adapter = initial_adapter(config, method)

    def observe(server_round: int, update: Sequence[Tensor]) -> None:
        # In the order of the update: the factors, then the head.
        num_head = len(adapter.head) if "head" in trained_parts(method, config, server_round) else 0
        is_head = [index >= len(update) - num_head for index in range(len(update))]
        rates = [learning_rate(train, server_round, of_head=of_head) for of_head in is_head]
        gradient_sums = [-divisor / rate * change for rate, change in zip(rates, update, strict=True)]
        scores[:] += canaries.scores(gradient_sums, subtract_known=plain_sgd)
        canaries.reset_known()

    simulate_rounds(config, _participants(config, settings, canaries, observe))
    if not np.isfinite(scores).all():
        raise DivergedError("an audited update is not finite: training has diverged. Lower train.learning_rate.")
    return scores


def _participants(
    config: Config, settings: AuditConfig, canaries: DiracCanaries, observe: Observer
) -> list[Participant]:
    attacked = settings.partition_id
    partition_ids = config.federation.participating if settings.other_clients else [attacked]
    participants = []
    for partition_id in partition_ids:
        client_data = load_client_data(config, partition_id)
        spend = calibrate_run(config, len(client_data.examples))
        participants.append(
            Participant(
                partition_id,
                per_example_losses(client_data, config),
                len(client_data.examples),
                audited_mechanism(config, spend, settings.sabotage if partition_id == attacked else "none"),
                canaries if partition_id == attacked else None,
                observe if partition_id == attacked else None,
                padded_widths(client_data, config.model.max_length),
            )
        )
    return participants


def _num_trained_values(config: Config) -> int:
    """Return the number of values trained in the round that trains the fewest: a canary needs its coordinate in all."""
    method = build_run_method(config)
    adapter = initial_adapter(config, method)
    rounds = {trained_parts(method, config, number) for number in range(1, config.train.num_rounds + 1)}
    return min(sum(tensor.numel() for part in parts for tensor in adapter.part(part).values()) for parts in rounds)

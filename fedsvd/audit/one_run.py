"""The one-run audit: canaries beside one client's real data, guessed at from the updates that the server sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsvd.audit.mechanism import CANARY_NORM, audited_mechanism
from fedsvd.audit.simulated_rounds import Observer, Participant, simulate_rounds
from fedsvd.config import Config
from fedsvd.config.audit import AuditConfig
from fedsvd.errors import RunError
from fedsvd.methods import build_method
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.audit_bound import Bound, audit_scores, largest_bound, plan_guesses
from fedsvd.privacy.canaries import DiracCanaries, draw_canaries
from fedsvd.privacy.membership import Roc, roc
from fedsvd.privacy.plan import calibrate_run
from fedsvd.runtime.data import load_client_data
from fedsvd.runtime.losses import per_example_losses
from fedsvd.runtime.model import initial_adapter, trained_parts
from fedsvd.training.loop import learning_rate

# The guesses are planned for three worlds: the noise is what is claimed, or too little, or hardly any.
_WORLDS = (1.0, 0.3, 0.05)


@dataclass(frozen=True)
class OneRunAudit:
    """What canaries showed.

    Attributes:
        claimed_epsilon: ε of the attacked client's whole run, as it is accounted for.
        spend: The mechanism that is claimed.
        bound: What the attacker's guesses prove.
        largest_bound: What they could have proved at most, all of them right.
        roc: Of all canaries, by the attacker's scores.
    """

    claimed_epsilon: float
    spend: Spend
    bound: Bound
    largest_bound: float
    roc: Roc

    @property
    def contradicts_claim(self) -> bool:
        """Whether the claim is refuted."""
        return self.bound.epsilon > self.claimed_epsilon


def audit_one_run(config: Config, settings: AuditConfig, rng: np.random.Generator) -> OneRunAudit:
    """Run the federation once, with canaries in one client's data, and bound its ε from below.

    Args:
        config: The run.
        settings: Whom to attack, with how many canaries, and what to break.
        rng: Draws canaries and their coins.

    Raises:
        PrivacyError: More canaries than trained numbers, or a budget that no noise can keep.
        RunError: Updates that are not finite.
    """
    privacy = config.privacy
    canaries = draw_canaries(settings.num_canaries, _num_trained(config), CANARY_NORM * privacy.max_grad_norm, rng)
    spend = calibrate_run(config, len(load_client_data(config, settings.partition_id).examples))
    each = 1 - (1 - settings.confidence) / len(_WORLDS)
    tests = tuple(
        plan_guesses(
            canaries.total,
            share * spend.noise_multiplier,
            spend.sample_rate,
            spend.steps,
            privacy.target_delta,
            each,
            rng,
        )
        for share in _WORLDS
    )
    scores = _attack(config, settings, canaries)
    return OneRunAudit(
        epsilon([spend], privacy.target_delta, privacy.accountant),
        spend,
        audit_scores(scores, canaries.included, tests, privacy.target_delta, settings.confidence),
        largest_bound(canaries.total, privacy.target_delta, settings.confidence, len(_WORLDS)),
        roc(scores, canaries.included),
    )


def _attack(config: Config, settings: AuditConfig, canaries: DiracCanaries) -> np.ndarray:
    """Sum each canary's evidence over the rounds, each round's update turned back into a sum of gradients."""
    scores = np.zeros(canaries.total)
    train = config.train
    # Of other optimisers an update is no plain sum of the steps' gradients, so the data's own part stays in it.
    plain = train.optimizer == "sgd" and train.momentum == 0 and train.weight_decay == 0
    num_examples = len(load_client_data(config, settings.partition_id).examples)
    divisor = calibrate_run(config, num_examples).sample_rate * num_examples

    def observe(server_round: int, update: Sequence[Tensor]) -> None:
        per_gradient = -divisor / learning_rate(train, server_round)
        scores[:] += canaries.scores([per_gradient * moved for moved in update], subtract_known=plain)
        canaries.forget()

    simulate_rounds(config, _participants(config, settings, canaries, observe))
    if not np.isfinite(scores).all():
        raise RunError("the audited updates are not finite: training has diverged. Lower train.learning_rate.")
    return scores


def _participants(
    config: Config, settings: AuditConfig, canaries: DiracCanaries, observe: Observer
) -> list[Participant]:
    attacked = settings.partition_id
    numbers = range(config.federation.num_clients) if settings.other_clients else [attacked]
    participants = []
    for number in numbers:
        silo = load_client_data(config, number)
        spend = calibrate_run(config, len(silo.examples))
        participants.append(
            Participant(
                number,
                per_example_losses(silo, config),
                len(silo.examples),
                audited_mechanism(config, spend, settings.sabotage if number == attacked else "none"),
                canaries if number == attacked else None,
                observe if number == attacked else None,
            )
        )
    return participants


def _num_trained(config: Config) -> int:
    method = build_method(config.method)
    adapter = initial_adapter(config, method)
    parts = trained_parts(method, config, 1)
    return sum(tensor.numel() for part in parts for tensor in adapter.part(part).values())

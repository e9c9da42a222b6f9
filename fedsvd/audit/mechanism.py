"""The mechanism under audit: as the client would run it, or broken on purpose."""

from __future__ import annotations

from dataclasses import replace

from fedsvd.config import Config
from fedsvd.config.audit import Sabotage
from fedsvd.privacy.accounting import Spend, calibrate
from fedsvd.privacy.dp_sgd import DPSGD

# So much longer than the bound are canaries, so that clipping has something to do, and its absence something to show.
CANARY_NORM = 10.0
# A bound that no gradient reaches; the noise stays what it was.
_NO_BOUND = 1e6


def whole_run(config: Config, num_examples: int) -> Spend:
    """Return what a client of so many examples does in a run of which it misses no round."""
    train, privacy = config.train, config.privacy
    sample_rate = min(1.0, train.batch_size / num_examples)
    steps = train.num_rounds * train.local_steps
    noise_multiplier = calibrate(privacy.target_epsilon, privacy.target_delta, sample_rate, steps, privacy.accountant)
    return Spend(noise_multiplier, sample_rate, steps)


def one_round(config: Config, spend: Spend, sabotage: Sabotage = "none") -> DPSGD:
    """Return the mechanism of one round, after sabotage.

    Args:
        config: The run.
        spend: See `whole_run`.
        sabotage: See `fedsvd.config.audit.AuditConfig`.
    """
    train = config.train
    mechanism = DPSGD(
        spend.noise_multiplier,
        config.privacy.max_grad_norm,
        spend.sample_rate,
        train.local_steps,
        train.physical_batch_size,
    )
    if sabotage == "no_noise":
        return replace(mechanism, noise_multiplier=0.0)
    if sabotage == "no_clipping":
        return replace(
            mechanism,
            max_grad_norm=_NO_BOUND * mechanism.max_grad_norm,
            noise_multiplier=mechanism.noise_multiplier / _NO_BOUND,
        )
    return mechanism

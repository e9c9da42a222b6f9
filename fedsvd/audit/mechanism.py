"""The mechanism under audit: the one that the client runs, or a deliberately broken one."""

from __future__ import annotations

from dataclasses import replace

from fedsvd.config import Config
from fedsvd.config.audit import Sabotage
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.dp_sgd import DPSGD
from fedsvd.runtime.private_round import round_mechanism

# Norm of a canary as a multiple of the clipping bound. Above 1, so that missing clipping is detected.
CANARY_NORM = 10.0
# Factor by which ``no_clipping`` raises the clipping bound, so that no gradient is clipped; the noise is unchanged.
_NO_CLIPPING_FACTOR = 1e6


def audited_mechanism(config: Config, run: Spend, sabotage: Sabotage) -> DPSGD:
    """Return the DP-SGD mechanism of one round, with sabotage applied.

    Args:
        config: The configuration of the run.
        run: The mechanism of the whole run; see `fedsvd.privacy.plan.calibrate_run`.
        sabotage: See `fedsvd.config.audit.AuditConfig`.
    """
    # ``run`` counts the steps of all rounds; a round takes ``local_steps`` of them.
    mechanism = round_mechanism(config, replace(run, steps=config.train.local_steps))
    if sabotage == "no_noise":
        return replace(mechanism, noise_multiplier=0.0)
    if sabotage == "no_clipping":
        return replace(
            mechanism,
            max_grad_norm=_NO_CLIPPING_FACTOR * mechanism.max_grad_norm,
            noise_multiplier=mechanism.noise_multiplier / _NO_CLIPPING_FACTOR,
        )
    return mechanism

"""The mechanism under audit: as the client would run it, or broken on purpose."""

from __future__ import annotations

from dataclasses import replace

from fedsvd.config import Config
from fedsvd.config.audit import Sabotage
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.dp_sgd import DPSGD
from fedsvd.runtime.private_round import round_mechanism

# So much longer than the bound are canaries, so that clipping has something to do, and its absence something to show.
CANARY_NORM = 10.0
# A bound that no gradient reaches; the noise stays what it was.
_NO_BOUND = 1e6


def audited_mechanism(config: Config, run: Spend, sabotage: Sabotage = "none") -> DPSGD:
    """Return the mechanism of one round, after sabotage.

    Args:
        config: The run.
        run: See `fedsvd.privacy.plan.calibrate_run`.
        sabotage: See `fedsvd.config.audit.AuditConfig`.
    """
    # What the run costs is counted over all its rounds; the client takes this part of the steps in each.
    mechanism = round_mechanism(config, replace(run, steps=config.train.local_steps))
    if sabotage == "no_noise":
        return replace(mechanism, noise_multiplier=0.0)
    if sabotage == "no_clipping":
        return replace(
            mechanism,
            max_grad_norm=_NO_BOUND * mechanism.max_grad_norm,
            noise_multiplier=mechanism.noise_multiplier / _NO_BOUND,
        )
    return mechanism

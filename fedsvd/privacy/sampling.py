"""The noise that sample rates cost at one (ε, δ) and one number of steps.

A step divides the noised sum of a batch by the expected batch size ``q n``, so its noise relative to that of a step on
all n examples is ``(σ_q / q) / σ_1``, for noise multipliers that cost the same ε. It does not depend on n. Sampling
lowers the noise multiplier, but by less than the batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsvd.config import Config
from fedsvd.errors import PrivacyError
from fedsvd.privacy.accounting import calibrate
from fedsvd.privacy.plan import ClientPlan

RATES = (0.05, 0.1, 0.2, 0.4, 1.0)
# Differences below this share are within the accuracy of the calibration.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class SampleRateCost:
    """The noise at one sample rate.

    Attributes:
        sample_rate: q.
        noise_multiplier: σ_q, calibrated for the run's ε, δ and number of steps.
        relative_noise: Noise of a step relative to that of a step on all examples.
        clients: Numbers of the clients that have this sample rate in the planned run.
    """

    sample_rate: float
    noise_multiplier: float
    relative_noise: float
    clients: tuple[int, ...] = ()


def sample_rate_costs(config: Config, plans: Sequence[ClientPlan]) -> list[SampleRateCost]:
    """Return the noise at `RATES` and at the clients' own sample rates, in ascending order of the rates.

    Args:
        config: Configuration of the run, with ``privacy=dp_sgd``.
        plans: The clients' plans; all have the same number of steps.
    """
    privacy, steps = config.privacy, plans[0].run.steps

    def noise(rate: float) -> float:
        return calibrate(privacy.target_epsilon, privacy.target_delta, rate, steps, privacy.accountant)

    costs = []
    for rate in sorted({*RATES, *(plan.run.sample_rate for plan in plans)}):
        clients = tuple(number for number, plan in enumerate(plans) if plan.run.sample_rate == rate)
        try:
            costs.append(SampleRateCost(rate, noise(rate), noise(rate) / rate / noise(1.0), clients))
        except PrivacyError:
            # No noise multiplier within the accountant's range; the plan itself reports this for the clients' rates.
            continue
    return costs


def recommend(costs: Sequence[SampleRateCost]) -> str:
    """Return one sentence on the sample rate with the least noise, given the result of `sample_rate_costs`."""
    best = min(costs, key=lambda cost: cost.relative_noise)
    noisier = [cost.relative_noise / best.relative_noise for cost in costs if cost.clients]
    lowest, highest = min(noisier), max(noisier)
    share = f"{best.sample_rate:g}"
    if highest <= 1 + _TOLERANCE:
        return f"Keep the sample rate: at this ε and number of steps, {share} has the least noise in a step."
    factor = f"{highest:.2f}" if f"{lowest:.2f}" == f"{highest:.2f}" else f"{lowest:.2f} to {highest:.2f}"
    return (
        f"Set train.sample_rate={share} if the time allows: at this ε and number of steps, the clients' present sample "
        f"rates have {factor} times its noise in a step, and memory use is the same (train.physical_batch_size)."
    )

"""What sample rates cost in one number of steps: noise at one (ε, δ), or ε at one noise multiplier.

A step divides the noised sum of a batch by the expected batch size ``q n``, so its noise relative to that of a step on
all n examples is ``(σ_q / q) / σ_1``, for noise multipliers that cost the same ε. It does not depend on n. Sampling
lowers the noise multiplier, but by less than the batch size. At a fixed noise multiplier, a larger sample rate has less
noise in a step, too, but costs more ε.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fedsvd.config import Config, PrivacyConfig
from fedsvd.errors import PrivacyError
from fedsvd.privacy.accounting import Spend, calibrate, epsilon
from fedsvd.privacy.plan import ClientPlan

RATES = (0.05, 0.1, 0.2, 0.4, 1.0)
# Differences below this share are within the accuracy of the calibration.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class SampleRateCost:
    """The noise at one sample rate.

    Attributes:
        sample_rate: q.
        noise_multiplier: σ_q, calibrated for the run's ε, δ and number of steps, or the fixed one of the run.
        relative_noise: Noise of a step relative to that of a step on all examples.
        clients: Numbers of the clients that have this sample rate in the planned run.
        epsilon: ε of the run at this sample rate, if the noise multiplier is fixed; else None.
    """

    sample_rate: float
    noise_multiplier: float
    relative_noise: float
    clients: tuple[int, ...] = ()
    epsilon: float | None = None


def sample_rate_costs(config: Config, plans: Mapping[int, ClientPlan]) -> list[SampleRateCost]:
    """Return the noise at `RATES` and at the clients' own sample rates, in ascending order of the rates.

    Args:
        config: Configuration of the run, with ``privacy=dp_sgd``.
        plans: The clients' plans, by number; all have the same number of steps.
    """
    costs, steps = [], next(iter(plans.values())).run.steps
    for rate in sorted({*RATES, *(plan.run.sample_rate for plan in plans.values())}):
        clients = tuple(number for number, plan in plans.items() if plan.run.sample_rate == rate)
        # The plan itself reports an error for the clients' rates.
        with suppress(PrivacyError):
            costs.append(_cost(config.privacy, rate, steps, clients))
    return costs


def _cost(privacy: PrivacyConfig, rate: float, steps: int, clients: tuple[int, ...]) -> SampleRateCost:
    """Raise a PrivacyError if the accountant has no noise multiplier or ε within its range."""
    delta, accountant = privacy.target_delta, privacy.accountant
    if privacy.noise_multiplier is not None:
        spend = Spend(privacy.noise_multiplier, rate, steps)
        return SampleRateCost(rate, spend.noise_multiplier, 1 / rate, clients, epsilon([spend], delta, accountant))
    noise, full = (calibrate(privacy.target_epsilon, delta, q, steps, accountant) for q in (rate, 1.0))
    return SampleRateCost(rate, noise, noise / rate / full, clients)


def recommend(costs: Sequence[SampleRateCost]) -> str:
    """Return one sentence on the sample rate with the least noise, given the result of `sample_rate_costs`.

    At a fixed noise multiplier no rate is best, and the sentence says so.
    """
    if any(cost.epsilon is not None for cost in costs):
        return (
            "No sample rate is recommended, since privacy.noise_multiplier is fixed: a larger rate has less noise in a "
            "step, but costs more ε. Set privacy.noise_multiplier=null to compare sample rates at one ε."
        )
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

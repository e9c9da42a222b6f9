"""Noise by sample rate: the calibrated table, and the recommendation."""

import pytest

from fedsvd.config.compose import compose
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.plan import calibrate_run, example_sample_rate, example_warnings, plan_client
from fedsvd.privacy.sampling import RATES, SampleRateCost, recommend, sample_rate_costs

RUN = ["experiment=smoke", "privacy.accountant=rdp", "privacy.target_epsilon=3", "train.num_rounds=6"]


def test_one_rate_for_all_clients() -> None:
    config = compose([*RUN, "train.sample_rate=0.25"])
    for count in (7, 1000):
        assert example_sample_rate(config.train, count) == 0.25
        assert calibrate_run(config, count).sample_rate == 0.25
    assert example_sample_rate(compose(RUN).train, 64) == 16 / 64
    assert not example_warnings(4, 1e-5, compose([*RUN, "train.sample_rate=1.0"]).train)


@pytest.mark.slow
def test_the_cost_of_sampling_at_epsilon_three_and_twelve_steps() -> None:
    config = compose(["experiment=smoke", "privacy.target_epsilon=3", "train.num_rounds=12", "train.local_steps=1"])
    costs = sample_rate_costs(config, {0: plan_client(config, 16, [])})

    assert [cost.sample_rate for cost in costs] == list(RATES)
    # By dp-accounting: 3.31, 2.08, 1.46, 1.16.
    assert [cost.relative_noise for cost in costs] == pytest.approx([3.31, 2.08, 1.46, 1.165, 1.0], rel=0.01)
    assert costs[-1].clients == (0,)


def test_every_rate_costs_the_same_epsilon_and_the_clients_are_marked() -> None:
    config = compose(RUN)
    plans = {number: plan_client(config, count, []) for number, count in enumerate((64, 160, 160))}
    costs = sample_rate_costs(config, plans)

    assert {cost.sample_rate: cost.clients for cost in costs if cost.clients} == {0.25: (0,), 0.1: (1, 2)}
    for cost in costs:
        assert 0.98 * 3 < epsilon([Spend(cost.noise_multiplier, cost.sample_rate, 12)], 1e-5, "rdp") <= 3
        assert cost.relative_noise == pytest.approx(
            cost.noise_multiplier / cost.sample_rate / costs[-1].noise_multiplier
        )
    assert "train.sample_rate=1 " in recommend(costs)


def test_at_a_fixed_noise_multiplier_larger_rates_cost_more_and_none_is_recommended() -> None:
    config = compose([*RUN, "privacy.noise_multiplier=0.9"])
    plans = {number: plan_client(config, count, []) for number, count in enumerate((64, 160))}
    costs = sample_rate_costs(config, plans)

    assert {cost.noise_multiplier for cost in costs} == {0.9}
    for cost in costs:
        assert cost.epsilon == pytest.approx(epsilon([Spend(0.9, cost.sample_rate, 12)], 1e-5, "rdp"))
        assert cost.relative_noise == pytest.approx(1 / cost.sample_rate)
    assert [cost.epsilon for cost in costs if cost.clients == (0,)] == [plans[0].epsilon_run]
    assert costs == sorted(costs, key=lambda cost: cost.epsilon or 0)
    assert recommend(costs).startswith("No sample rate is recommended, since privacy.noise_multiplier is fixed")


def test_recommendations() -> None:
    full = SampleRateCost(1.0, 4.0, 1.0)
    assert "have 2.50 times its noise" in recommend([SampleRateCost(0.1, 1.0, 2.5, (0,)), full])
    mixed = [SampleRateCost(0.1, 1.0, 2.5, (0,)), SampleRateCost(0.4, 2.4, 1.5, (1,)), full]
    assert "have 1.50 to 2.50 times its noise" in recommend(mixed)
    assert recommend([SampleRateCost(1.0, 4.0, 1.0, (0, 1))]).startswith("Keep the sample rate")

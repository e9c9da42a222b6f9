"""Tests of plans: they agree with what a client does, and warn about risky settings."""

import pytest

from fedsvd.config.compose import compose
from fedsvd.errors import BudgetExceededError, PrivacyError
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Budget
from fedsvd.privacy.ledger_checks import check_budget
from fedsvd.privacy.plan import (
    calibrate_run,
    configured_budget,
    example_warnings,
    plan_client,
    plan_warnings,
    poisson_rate,
)

SMOKE = ["experiment=smoke", "privacy.accountant=rdp", "train.num_rounds=6", "privacy.target_epsilon=3"]


def test_noise_is_calibrated_for_all_steps_a_client_can_take() -> None:
    config = compose([*SMOKE, "federation.num_clients=4", "federation.clients_per_round=1"])
    run = calibrate_run(config, 100)

    assert (run.sample_rate, run.steps) == (0.16, 12)
    assert 0.97 * 3 < epsilon([run], 1e-5, "rdp") <= 3


def test_new_client_can_participate_in_every_round() -> None:
    plan = plan_client(compose(SMOKE), 100, [])

    assert plan.epsilon_before == 0
    assert plan.epsilon_run == plan.epsilon_after <= 3
    assert (plan.remaining_rounds, plan.affordable_rounds) == (6, 6)


def test_earlier_charges_leave_fewer_rounds() -> None:
    config = compose([*SMOKE, "privacy.max_epsilon=3.5"])
    history = [Spend(1.3, 0.16, 10)]
    plan = plan_client(config, 100, history)
    per_round = Spend(plan.run.noise_multiplier, plan.run.sample_rate, config.train.local_steps)
    after = [epsilon([*history, *[per_round] * rounds], 1e-5, "rdp") for rounds in range(7)]

    assert 0 < plan.affordable_rounds < 6
    assert after[plan.affordable_rounds] <= 3.5 < after[plan.affordable_rounds + 1]
    assert (plan.epsilon_before, plan.epsilon_after) == (after[0], after[6])


@pytest.mark.parametrize(("noise", "affordable"), [(0.5, 0), (100.0, 6)])
def test_budget_covers_no_round_or_all(noise: float, affordable: int) -> None:
    config = compose([*SMOKE, "privacy.max_epsilon=3.2"])

    assert plan_client(config, 100, [Spend(noise, 0.16, 6)]).affordable_rounds == affordable


def test_a_run_is_limited_by_its_own_target_too() -> None:
    fixed = ["privacy.noise_multiplier=0.8", "privacy.target_epsilon=2", "train.batch_size=50", "train.num_rounds=20"]
    config = compose([*SMOKE, *fixed, "privacy.max_epsilon=20"])
    plan = plan_client(config, 1000, [])
    round_alone = Spend(0.8, 0.05, config.train.local_steps)
    # As the ledger does: its first round is refused, although all charges together may cost 20.
    with pytest.raises(BudgetExceededError, match="this run"):
        check_budget([], "run", round_alone, configured_budget(config.privacy), "data")
    assert 2 < plan.epsilon_after < 20
    assert (plan.remaining_rounds, plan.affordable_rounds, plan.run_limit) == (20, 0, 2.0)
    [warning] = plan_warnings(config, {3: plan})
    assert "client 3: its budget covers 0 of the 20 remaining rounds" in warning
    assert "limited to privacy.target_epsilon = 2, whatever privacy.max_epsilon allows" in warning

    some = plan_client(compose([*SMOKE, *fixed, "privacy.target_epsilon=4", "privacy.max_epsilon=20"]), 1000, [])
    costs = {rounds: epsilon([Spend(0.8, 0.05, 2 * rounds)], 1e-5, "rdp") for rounds in range(1, 21)}
    assert 0 < some.affordable_rounds < 20
    assert costs[some.affordable_rounds] <= 4 < costs[some.affordable_rounds + 1]
    # A process of a resumed run starts anew, but a run with shared noise does not.
    shared = ["privacy=client_level", "privacy.noise_share=true", "federation.secure_aggregation=true"]
    run = calibrate_run(compose([*SMOKE, *shared]), None)
    level, charged = compose([*SMOKE, *shared, "privacy.max_epsilon=20"]), [Spend(run.noise_multiplier, 1.0, 4)]
    assert plan_client(level, 100, charged).affordable_rounds == 6
    assert plan_client(level, 100, charged, of_run=charged).affordable_rounds == 2


def test_resumed_run_has_fewer_remaining_rounds() -> None:
    config = compose(SMOKE)
    run = calibrate_run(config, 100)
    done = [Spend(run.noise_multiplier, run.sample_rate, 2)] * 4
    plan = plan_client(config, 100, done, rounds_done=4)
    finished = plan_client(config, 100, [run], rounds_done=6)

    assert (plan.remaining_rounds, plan.affordable_rounds) == (2, 2)
    assert plan.epsilon_after == plan.epsilon_run
    assert (finished.remaining_rounds, finished.affordable_rounds) == (0, 0)
    assert finished.epsilon_after == finished.epsilon_before


@pytest.mark.parametrize(("shared", "affordable"), [("false", 4), ("true", 3)])
def test_clients_pay_for_each_round_if_they_share_the_noise(shared: str, affordable: int) -> None:
    level = ["privacy=client_level", f"privacy.noise_share={shared}", "federation.secure_aggregation=true"]
    config = compose([*SMOKE, *level])
    run = calibrate_run(config, 100)
    # Two rounds are done, and a third one was interrupted.
    history = [Spend(run.noise_multiplier, 1.0, 3 if shared == "true" else 6)]
    plan = plan_client(config, 100, history, rounds_done=2, is_charged=shared == "false")

    assert (plan.remaining_rounds, plan.affordable_rounds) == (4, affordable)
    assert plan_client(config, 100, []).affordable_rounds == 6


def test_rounds_that_are_done_have_not_charged_a_client_that_was_left_out() -> None:
    config = compose([*SMOKE, "privacy=client_level", "privacy.max_epsilon=4"])
    run = calibrate_run(config, 100)
    new = plan_client(config, 100, [], rounds_done=2)
    assert (new.epsilon_before, new.epsilon_after) == (0, new.epsilon_run)
    assert new.affordable_rounds == new.remaining_rounds == 4
    # Its budget was used up by another run, so that this one has left it out.
    left_out = plan_client(config, 100, [run], rounds_done=2)
    assert left_out.affordable_rounds == 0
    assert left_out.epsilon_after > 4
    charged = plan_client(config, 100, [run], rounds_done=2, is_charged=True)
    assert charged.affordable_rounds == 4
    assert charged.epsilon_after == charged.epsilon_before


def test_the_budget_of_a_configuration() -> None:
    assert configured_budget(compose(SMOKE).privacy) == Budget(3.0, 1e-5, 3.0, 1e-5, "rdp")
    assert configured_budget(compose([*SMOKE, "privacy.max_epsilon=8"]).privacy).max_epsilon == 8.0


def test_clients_with_no_or_one_example() -> None:
    with pytest.raises(PrivacyError, match="no examples"):
        poisson_rate(0, 16)
    assert poisson_rate(1, 16) == poisson_rate(16, 16) == 1.0
    assert plan_client(compose(SMOKE), 1, []).epsilon_run <= 3


@pytest.mark.slow
def test_warnings() -> None:
    config = compose([*SMOKE, "privacy.target_delta=0.02", "privacy.max_epsilon=3"])
    clients = [(40, []), (60, []), (8, [Spend(1.0, 1.0, 6)])]
    plans = {number: plan_client(config, *client) for number, client in enumerate(clients)}
    warnings = plan_warnings(config, plans)

    assert [line.partition(":")[0] for line in warnings] == ["client 1", "client 2", "client 2"]
    assert "privacy.target_delta = 0.02 is at least 1/60" in warnings[0]
    assert "batch_size = 16 is more than its 8 examples" in warnings[1]
    assert "covers 0 of the 6 remaining rounds" in warnings[2]


def test_a_delta_of_one_over_the_number_of_examples_is_warned_of() -> None:
    train = compose([*SMOKE, "train.batch_size=16"]).train
    [warning] = example_warnings(128, 1 / 128, train)
    assert "is at least 1/128" in warning
    assert example_warnings(127, 1 / 128, train) == []
    [warning] = example_warnings(15, 1e-5, train)
    assert "train.batch_size = 16 is more than its 15 examples" in warning
    config = compose([*SMOKE, "privacy.target_delta=0.01"])
    plans = {0: plan_client(config, 200, [])}
    assert any(warning.startswith("client 0: privacy.target_delta") for warning in plan_warnings(config, plans))

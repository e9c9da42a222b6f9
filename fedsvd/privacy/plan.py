"""What a run will cost a client, told before it runs: the client's noise comes from here too, so that the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsvd.config import Config
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.errors import PrivacyError
from fedsvd.privacy import client_level
from fedsvd.privacy.accounting import Spend, calibrate, epsilon
from fedsvd.privacy.ledger import Budget


@dataclass(frozen=True)
class ClientPlan:
    """One client's part in a run that is yet to come.

    Attributes:
        num_examples: Size of its data.
        run: Its noise and sample rate, with the steps of a client that is sampled in every round.
        epsilon_run: ε of those steps alone, at the run's δ.
        epsilon_before: ε of what its ledger holds already, at ``budget.max_delta``.
        epsilon_after: ε of the ledger with the rounds to come; more than the budget where not all of them fit.
        rounds_to_come: Rounds that the run has left.
        rounds_that_fit: As many of them as the budget holds.
    """

    num_examples: int
    run: Spend
    epsilon_run: float
    epsilon_before: float
    epsilon_after: float
    remaining_rounds: int
    affordable_rounds: int


def poisson_rate(num_examples: int, batch_size: int) -> float:
    """Return the rate whose expected batch is ``batch_size``; 1 where there are no more examples than that.

    Raises:
        PrivacyError: No examples at all.
    """
    if num_examples == 0:
        raise PrivacyError("this client holds no examples; it can take no part.")
    return min(1.0, batch_size / num_examples)


def calibrate_run(config: Config, num_examples: int) -> Spend:
    """Return the calibrated mechanism and the most steps that a client can ever take: one sampled in every round.

    With client-level privacy a step is a round, and what it costs is the same for every client.

    Raises:
        PrivacyError: No examples, or a budget that no noise can keep.
    """
    train, privacy = config.train, config.privacy
    if privacy.name == "client_level":
        return client_level.run_spend(privacy, train, config.federation)
    sample_rate = poisson_rate(num_examples, train.batch_size)
    steps = train.num_rounds * train.local_steps
    noise = privacy.noise_multiplier or calibrate(
        privacy.target_epsilon, privacy.target_delta, sample_rate, steps, privacy.accountant
    )
    return Spend(noise, sample_rate, steps)


def configured_budget(privacy: PrivacyConfig) -> Budget:
    """Return the budget of a client that has no limits of its own."""
    most = privacy.target_epsilon if privacy.max_epsilon is None else privacy.max_epsilon
    return Budget(privacy.target_epsilon, privacy.target_delta, most, privacy.target_delta, privacy.accountant)


def plan_client(config: Config, num_examples: int, history: Sequence[Spend], rounds_done: int = 0) -> ClientPlan:
    """Plan one client's part.

    Args:
        config: The run.
        num_examples: Size of the client's data.
        history: What its ledger holds already.
        rounds_done: Rounds that an earlier process did; their spends are in ``history``.

    Raises:
        PrivacyError: As `calibrate_run`.
    """
    run, budget = calibrate_run(config, num_examples), configured_budget(config.privacy)
    remaining_rounds = config.train.num_rounds - rounds_done

    # The server's noise is charged for a whole run at once, and was if any round is done.
    at_once = config.privacy.name == "client_level"

    def after(rounds: int) -> float:
        steps = (run.steps if rounds and not rounds_done else 0) if at_once else rounds * config.train.local_steps
        more = [Spend(run.noise_multiplier, run.sample_rate, steps)] if steps else []
        return epsilon([*history, *more], budget.max_delta, budget.accountant)

    fit, too_many = 0, remaining_rounds + 1
    while too_many - fit > 1:
        middle = remaining_rounds if too_many > remaining_rounds else (fit + too_many) // 2
        fit, too_many = (middle, too_many) if after(middle) <= budget.max_epsilon else (fit, middle)
    return ClientPlan(
        num_examples,
        run,
        epsilon([run], budget.target_delta, budget.accountant),
        after(0),
        after(remaining_rounds),
        remaining_rounds,
        fit,
    )


def plan_warnings(config: Config, plans: Sequence[ClientPlan]) -> list[str]:
    """Return what a person should know before such a run."""
    privacy, num_clients = config.privacy, config.federation.num_clients
    said = []
    if privacy.name == "client_level" and privacy.target_delta * num_clients >= 1:
        said.append(
            f"privacy.target_delta = {privacy.target_delta:g} is at least 1/{num_clients}, one over the number of "
            f"clients. Set it well below {1 / num_clients:.1g}."
        )
    for number, plan in enumerate(plans):
        if privacy.name == "dp_sgd":
            warnings = example_warnings(plan.num_examples, privacy.target_delta, config.train.batch_size)
            said += [f"client {number}: {warning}" for warning in warnings]
        if plan.affordable_rounds < plan.remaining_rounds:
            said.append(
                f"client {number}: its budget holds {plan.rounds_that_fit} of the {plan.rounds_to_come} rounds to "
                "come; it will decline the others."
            )
    return said


def example_warnings(num_examples: int, target_delta: float, batch_size: int) -> list[str]:
    """Return what to say of a δ that lets whole examples through, and of batches that are the whole data."""
    said = []
    if target_delta * num_examples >= 1:
        said.append(
            f"privacy.target_delta = {target_delta:g} is at least 1/{num_examples}, one over its number of examples: a "
            "mechanism that publishes one of them as it is could keep such a promise. "
            f"Set it well below {1 / num_examples:.1g}."
        )
    if batch_size > num_examples:
        said.append(
            f"train.batch_size = {batch_size} is more than its {num_examples} examples: every step takes all of them, "
            "and ε gains nothing from sampling."
        )
    return said

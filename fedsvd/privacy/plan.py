"""The privacy cost of a run for a client, planned in advance; clients calibrate their noise with the same functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedsvd.config import Config, TrainConfig
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.errors import PrivacyError
from fedsvd.privacy import client_level
from fedsvd.privacy.accounting import Spend, calibrate, epsilon
from fedsvd.privacy.ledger import Budget


@dataclass(frozen=True)
class ClientPlan:
    """The planned privacy cost of one client's participation in a run.

    Attributes:
        num_examples: Number of the client's examples; None if it is not known, as that of a real node.
        run: The client's noise multiplier and sample rate, and the steps of a client that is sampled in every round.
        epsilon_run: ε of these steps alone, at the run's δ; of a resumed run, of what its rounds have cost and the
            remaining ones will, which may have another noise multiplier.
        epsilon_before: ε of the charges that are already in the ledger, at ``budget.max_delta``.
        epsilon_after: ε of the ledger after all remaining rounds.
        remaining_rounds: Number of rounds that the run has left.
        affordable_rounds: Number of remaining rounds that the budget covers: the limit of all charges, ``max_epsilon``,
            and that of this run's alone, ``target_epsilon``.
        run_limit: ``privacy.target_epsilon`` if it is the limit of this run that leaves rounds out; None otherwise.
    """

    num_examples: int | None
    run: Spend
    epsilon_run: float
    epsilon_before: float
    epsilon_after: float
    remaining_rounds: int
    affordable_rounds: int
    run_limit: float | None = None


def poisson_rate(num_examples: int, batch_size: int) -> float:
    """Return the sample rate whose expected batch size is ``batch_size``, or 1 if there are no more examples than that.

    Raises:
        PrivacyError: There are no examples.
    """
    if num_examples == 0:
        raise PrivacyError("this client has no examples; it cannot participate.")
    return min(1.0, batch_size / num_examples)


def example_sample_rate(train: TrainConfig, num_examples: int | None) -> float:
    """Return a client's sample rate: ``train.sample_rate``, or the one that follows from ``train.batch_size``.

    Raises:
        PrivacyError: There are no examples, or their number is not known (None) and determines the rate.
    """
    if num_examples is None:
        if train.sample_rate is None:
            raise PrivacyError(
                "the numbers of examples of the nodes (data=node) are not known here, and the cost of a run depends on "
                f"them: train.batch_size = {train.batch_size} gives a node with N examples the sample rate "
                f"{train.batch_size}/N, at most 1. To plan for such a node, set "
                f"train.sample_rate={train.batch_size}/N, as a number; in the run, train.sample_rate gives all nodes "
                "the same rate and cost."
            )
        return train.sample_rate
    rate = poisson_rate(num_examples, train.batch_size)
    return rate if train.sample_rate is None else train.sample_rate


def calibrate_run(config: Config, num_examples: int | None) -> Spend:
    """Return the calibrated mechanism with the largest possible number of steps: those of a client in every round.

    With client-level privacy, a step is a round, and its cost is the same for every client.

    Raises:
        PrivacyError: As for `example_sample_rate`; or no noise multiplier stays within the budget.
    """
    train, privacy = config.train, config.privacy
    if privacy.name == "client_level":
        return client_level.run_spend(privacy, train, config.federation)
    sample_rate = example_sample_rate(train, num_examples)
    steps = train.num_rounds * train.local_steps
    noise = privacy.noise_multiplier or calibrate(
        privacy.target_epsilon, privacy.target_delta, sample_rate, steps, privacy.accountant
    )
    return Spend(noise, sample_rate, steps)


def configured_budget(privacy: PrivacyConfig) -> Budget:
    """Return the budget in the run's configuration, which applies to a client without limits of its own."""
    max_epsilon = privacy.target_epsilon if privacy.max_epsilon is None else privacy.max_epsilon
    return Budget(privacy.target_epsilon, privacy.target_delta, max_epsilon, privacy.target_delta, privacy.accountant)


def plan_client(
    config: Config,
    num_examples: int | None,
    history: Sequence[Spend],
    rounds_done: int = 0,
    *,
    is_charged: bool = False,
    of_run: Sequence[Spend] = (),
    done: Sequence[Spend] = (),
) -> ClientPlan:
    """Plan one client's participation in a run.

    Args:
        config: Configuration of the run.
        num_examples: Number of the client's examples; None if it is not known.
        history: Spends that are already in the client's ledger.
        rounds_done: Number of rounds that an earlier process completed; their spends are in ``history``.
        is_charged: Whether the history has the charge for all rounds of this run, which client-level privacy without
            shared noise makes in advance. A client may have none although rounds are done: one that the run has left
            out or, in a run directory of an earlier version, one that was never sampled.
        of_run: Those spends in the history that the ledger counts as this run's. With DP-SGD, there are none: each
            process of a resumed run counts as a run of its own.
        done: Those spends in the history that are known as this run's, in all its processes.

    Raises:
        PrivacyError: As for `calibrate_run`.
    """
    run, budget = calibrate_run(config, num_examples), configured_budget(config.privacy)
    remaining_rounds = config.train.num_rounds - rounds_done

    def total(rounds: int) -> float:
        return epsilon([*history, *_new_spends(config, run, rounds, is_charged)], budget.max_delta, budget.accountant)

    def is_within_target(rounds: int) -> bool:
        new = _new_spends(config, run, rounds, is_charged)
        spent = epsilon([*of_run, *new], budget.target_delta, budget.accountant) if new else 0.0
        return spent <= budget.target_epsilon

    within_total = _most_rounds(remaining_rounds, lambda rounds: total(rounds) <= budget.max_epsilon)
    affordable = _most_rounds(within_total, is_within_target)
    of_all_rounds = [*done, *_new_spends(config, run, remaining_rounds, is_charged)] if done else [run]
    return ClientPlan(
        num_examples,
        run,
        epsilon(of_all_rounds, budget.target_delta, budget.accountant),
        total(0),
        total(remaining_rounds),
        remaining_rounds,
        affordable,
        budget.target_epsilon if affordable < within_total else None,
    )


def _new_spends(config: Config, run: Spend, rounds: int, is_charged: bool) -> list[Spend]:
    """Return the charges for a number of rounds; none if the client was charged for all rounds of the run at once."""
    # With client-level privacy, a step is a round. If the server adds the noise, a whole run is charged at once.
    if config.privacy.is_charged_in_advance:
        steps = run.steps if rounds and not is_charged else 0
    else:
        steps = rounds * (1 if config.privacy.name == "client_level" else config.train.local_steps)
    return [Spend(run.noise_multiplier, run.sample_rate, steps)] if steps else []


def _most_rounds(rounds: int, is_allowed: Callable[[int], bool]) -> int:
    """Return the largest number of rounds, up to ``rounds``, that is allowed, as all smaller ones are; else 0."""
    affordable, too_many = 0, rounds + 1
    while too_many - affordable > 1:
        middle = rounds if too_many > rounds else (affordable + too_many) // 2
        if is_allowed(middle):
            affordable = middle
        else:
            too_many = middle
    return affordable


def plan_warnings(config: Config, plans: Mapping[int, ClientPlan]) -> list[str]:
    """Return warnings to show before such a run, given the clients' plans by number."""
    privacy, num_clients = config.privacy, config.federation.num_clients
    warnings = []
    if privacy.name == "client_level" and privacy.target_delta * num_clients >= 1:
        warnings.append(
            f"privacy.target_delta = {privacy.target_delta:g} is at least 1/{num_clients}, one over the number of "
            f"clients; set it well below {1 / num_clients:.1g}."
        )
    for number, plan in plans.items():
        if privacy.name == "dp_sgd" and plan.num_examples is not None:
            data_warnings = example_warnings(plan.num_examples, privacy.target_delta, config.train)
            warnings += [f"client {number}: {warning}" for warning in data_warnings]
        if plan.affordable_rounds < plan.remaining_rounds:
            warnings.append(
                f"client {number}: its budget covers {plan.affordable_rounds} of the {plan.remaining_rounds} remaining "
                f"rounds; it will decline the others.{run_limit_note(plan)}"
            )
    return warnings


def run_limit_note(plan: ClientPlan) -> str:
    """Return a sentence on the limit of one run, for a warning, if it leaves rounds out; else nothing."""
    if plan.run_limit is None:
        return ""
    return (
        f" Its charges for this run alone are limited to privacy.target_epsilon = {plan.run_limit:g}, whatever "
        "privacy.max_epsilon allows: a larger privacy.noise_multiplier, or fewer rounds, would cost less."
    )


def example_warnings(num_examples: int, target_delta: float, train: TrainConfig) -> list[str]:
    """Return warnings about a δ that permits releasing whole examples, and about batches that contain all the data."""
    warnings = []
    if target_delta * num_examples >= 1:
        warnings.append(
            f"privacy.target_delta = {target_delta:g} is at least 1/{num_examples}, one over its number of examples: "
            "a mechanism that publishes one example unchanged could satisfy this guarantee. "
            f"Set it well below {1 / num_examples:.1g}."
        )
    if train.sample_rate is None and train.batch_size > num_examples:
        warnings.append(
            f"train.batch_size = {train.batch_size} is more than its {num_examples} examples: every batch contains all "
            "of them, and ε gains nothing from sampling."
        )
    return warnings

"""``fedsvd privacy``: show the privacy cost of a planned run, or the privacy spent according to a ledger."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from fedsvd.commands import privacy_ledger
from fedsvd.commands.arguments import normalize, resumed_folder
from fedsvd.commands.output import warn_left_out
from fedsvd.commands.usage import command_usage
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.privacy.plan import configured_budget, plan_warnings
from fedsvd.privacy.sampling import recommend, sample_rate_costs
from fedsvd.report.literal import literal
from fedsvd.report.privacy_tables import plan_table, sample_rates_table
from fedsvd.runs.folder import RunFolder

_CHANGED = (
    "its ledger was last charged for other data (another file, seed or partition); all earlier charges count against "
    "this data, too."
)

_NODES = (
    "The nodes' numbers of examples are not known here, nor are their ledgers and limits: this is the cost of all "
    "rounds for a node with any number of examples. With example-level privacy, δ must be well below one over that "
    "number."
)


def run(arguments: Sequence[str]) -> None:
    """Plan a run, or show a ledger.

    Raises:
        ConfigError: The arguments or the configuration are invalid.
        LedgerError: The ledger is missing, damaged or not a ledger, or cannot be charged for the plan's data.
        PrivacyError: No amount of noise satisfies the budget.
    """
    if arguments and arguments[0] == "plan":
        _plan(normalize(arguments[1:]))
    elif len(arguments) > 1 and arguments[0] == "ledger":
        privacy_ledger.run(arguments[1:])
    else:
        raise ConfigError(
            "invalid arguments: "
            + f"fedsvd privacy {' '.join(arguments)}".rstrip()
            + f". Usage: {command_usage('privacy')}"
        )


def _plan(overrides: Sequence[str]) -> None:
    config = _compose_resumable(overrides)
    privacy = config.privacy
    if privacy.name == "none":
        raise ConfigError("privacy = none gives no guarantee to plan; set privacy=dp_sgd or privacy=client_level.")
    if config.train.trains == "none":
        raise ConfigError("train.trains = none takes no steps, so there is nothing to plan; set it to both.")
    # Imported late: importing torch and transformers would delay the errors above.
    from fedsvd.launch.budget import plan_run
    from fedsvd.runtime.data import left_out

    if config.data.name != "node":
        warn_left_out(left_out(config))
    planned = plan_run(config)
    plans, done = planned.clients, planned.rounds_done
    budget, console = configured_budget(privacy), Console()
    unit, bound = ("example", "max_grad_norm") if privacy.name == "dp_sgd" else ("client", "max_update_norm")
    console.print(plan_table(plans, budget.target_delta, unit))
    rounds = f"{config.train.num_rounds} rounds" + (f", {done} already done" if done else "")
    console.print(
        f"{rounds}; budget: ε ≤ {privacy.target_epsilon:g} for this run and ε ≤ {budget.max_epsilon:g} in total, at "
        f"δ = {privacy.target_delta:g}, {privacy.accountant} accountant; {bound} = {getattr(privacy, bound):g}",
        highlight=False,
        soft_wrap=True,
    )
    if config.data.name == "node":
        console.print(_NODES, soft_wrap=True)
    elif not (privacy.ledger_dir or config.resume):
        console.print(
            "No ledgers are taken into account; set privacy.ledger_dir or resume to include them. The ledger and "
            "limits of a real client are known only to its node.",
            soft_wrap=True,
        )
    if privacy.name == "dp_sgd":
        costs = sample_rate_costs(config, plans)
        console.print(sample_rates_table(costs, plans, config))
        console.print(recommend(costs), highlight=False, soft_wrap=True)
    changed = [f"client {number}: {_CHANGED}" for number in planned.changed]
    for warning in [*changed, *plan_warnings(config, plans)]:
        console.print(literal("warning:", "yellow"), literal(warning), soft_wrap=True)


def _compose_resumable(overrides: Sequence[str]) -> Config:
    """Compose the configuration; with ``resume``, on top of the overrides of the run to resume."""
    folder = resumed_folder(overrides)
    if folder is None:
        return compose(list(overrides))
    from fedsvd.launch import saved_overrides
    from fedsvd.launch.resume import check_settings

    config = compose([*saved_overrides(folder), *overrides])
    check_settings(RunFolder(folder), config)
    return config

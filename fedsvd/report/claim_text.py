"""A run's guarantee in one line, for the terminal, and the paragraphs that say why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedsvd.config.class_weights import HELD_OUT
from fedsvd.privacy.claim import Claim
from fedsvd.privacy.rounding import rounded_up
from fedsvd.report.document import Block, Paragraph
from fedsvd.report.loaded_runs import Run
from fedsvd.runs.best_round import read_best_round
from fedsvd.runs.folder import RunFolder

# Data whose classes are those of its labels; those of other data are public, or configured.
_OWN_CLASSES = ("csv", "jsonl", "parquet", "arrow", "hub")
_UNITS = {"example": "example of a client", "client": "client"}


def privacy_line(claim: Claim) -> str:
    """Return what a run claims, on one line."""
    if not claim.is_given:
        return f"privacy: no guarantee ({claim.reason})"
    spent = "no spending recorded" if claim.epsilon is None else f"ε ≤ {rounded_up(claim.epsilon, 2)}"
    text = f"privacy: {spent} at δ = {claim.delta:g} per {_UNITS[str(claim.unit)]}"
    if claim.status == "unrecorded":
        text += f", only if the run was never resumed with other settings ({claim.reason})"
    if not claim.every("secure_random"):
        text += ", only against those who do not search the noise's seeds (privacy.secure_random=false)"
    return f"{text}; this is ε of the run, clients' totals are in their own ledgers" if claim.unit == "client" else text


def no_guarantee(claim: Claim) -> list[Block]:
    """Return the statement of a run without a guarantee."""
    if claim.reason.startswith("it was trained"):
        text = "This run was trained without differential privacy (privacy=none). It gives no guarantee"
    else:
        text = f"This run gives no guarantee: {claim.reason}. What holds for some rounds does not hold for the run"
    risk = "the model, and every update sent during training, may reveal the text that it was trained on."
    return [Paragraph(f"{text}: {risk}", "warning")]


def caveats(claim: Claim) -> list[Block]:
    """Return what limits the guarantee: unrecorded settings, weak noise, and charges for updates not accepted."""
    blocks: list[Block] = []
    if claim.status == "unrecorded":
        blocks.append(
            Paragraph(
                f"Not proven by the records: {claim.reason}. What follows holds only if these rounds ran under the "
                "settings of this run's configuration, that is, if the run was never resumed with other settings.",
                "warning",
            )
        )
    if not claim.every("secure_random"):
        text = (
            "Noise came from torch's generators (privacy.secure_random=false), which have 2³² seeds on a CPU: who sees "
            "an update can try them all and subtract the noise. What follows holds only against those who do not: it "
            "is for measurements and tests, and no guarantee for real data."
        )
        blocks.append(Paragraph(text, "warning"))
    if claim.presumed:
        unknown = [name for name in claim.presumed if name not in claim.charges]
        text = (
            f"Clients {', '.join(claim.presumed)} may have been charged for replies that were lost or rejected, or in "
            "rounds that were interrupted, and may have sent them: ε includes the most that this can have cost"
        )
        if unknown:
            text += f", except those of clients {', '.join(unknown)}, whose settings are only in their own ledgers"
        blocks.append(Paragraph(f"{text}.", "warning" if unknown else "note"))
    if claim.ledgers:
        names = ", ".join(f"{name} ({count} ledgers)" for name, count in sorted(claim.ledgers.items()))
        text = (
            f"The ledger of clients {names} was replaced during the run, and their settings are only in their ledgers: "
            "ε is the sum of what all ledgers of a client reported, and δ counts once for each."
        )
        blocks.append(Paragraph(text, "warning"))
    return blocks


def nothing_reported(claim: Claim) -> str:
    """Return the statement of a private run in which no client has reported a spend."""
    if claim.num_rounds:
        return (
            f"Differential privacy is enabled, and in {claim.num_rounds} completed rounds no client has reported a "
            "spend. Each client's ledger records what it was charged."
        )
    return (
        "Differential privacy is enabled, and no round is complete. What an interrupted round was charged is in the "
        "clients' ledgers."
    )


def stopped_early(claim: Claim, stop: Mapping[str, Any] | None) -> list[Block]:
    """Say what ε means if the number of rounds depended on the models of earlier rounds.

    An outcome in which a run ends after t rounds is an outcome of t rounds, for which ε of t rounds holds: ex-post
    privacy (Ligett et al. 2017, arXiv 1705.10829). All outcomes together are post-processing of all planned rounds.

    Args:
        claim: The guarantee of the run.
        stop: The fields of `fedsvd.runs.best_round.EarlyStop`; None if the run took all planned rounds.
    """
    if not stop:
        return []
    done, planned = stop["server_round"], stop["num_rounds"]
    text = f"The run stopped early, after round {done} of {planned}, by a metric of its models on held-out texts. "
    # Without recorded charges of its clients, ε may be rounded up to that of all planned rounds.
    bound = "that of" if claim.charges or claim.unit == "client" else "a bound for"
    text += (
        f"ε is {bound} the {done} rounds that took place, and holds for every outcome in which the run ends there. "
        f"What could be promised before the run, wherever it would end, is ε of all {planned} rounds, which is "
        "within the budget."
    )
    if claim.unit == "client" and not claim.some("noise_share"):
        text += " Each client's own ledger was charged for all of them in advance."
    return [Paragraph(text)]


def withholds_counts(run: Run) -> bool:
    """Return whether the clients did not disclose their numbers of examples."""
    clients = run.privacy.get("clients", {}).values()
    return bool(clients) and all(client["num_examples"] is None for client in clients)


def withheld_counts(run: Run) -> str:
    """Return how well numbers of examples are hidden that clients do not send, if the server sees each update."""
    # The standard deviation of the noise depends on the noise multiplier, and on the number of examples in a batch.
    estimates = "; the noise in its updates permits estimates" if run.claim.unit == "example" else ""
    return f"stays at the client{estimates}"


def summed_counts(run: Run) -> str:
    """Return how well numbers of examples are hidden with secure aggregation."""
    has_equal_weights = run.config.get("federation.weighting") == "uniform" or run.claim.every("noise_share")
    if has_equal_weights or run.claim.unit == "client":
        return "hidden in the sum"
    return "the server learns their sum over the clients of a round; sums of different clients tell single numbers"


def epsilon_protection(run: Run) -> str:
    """Return how ε was kept from telling numbers of examples that clients do not send."""
    limits = _reported_limits(run) if run.claim.unit == "example" and withholds_counts(run) else None
    if limits is None:
        return "none: public"
    bound, spent = f"a multiple of {run.budget:g}", {value for values in _epsilons(run).values() for value in values}
    if limits:
        limit = f"a client's limit ({', '.join(f'{value:g}' for value in sorted(limits))})"
        bound = f"{bound}, or to {limit} where that is less" if spent - limits else limit
    return f"ε is rounded up to {bound}, so that it does not tell the number of examples"


def _reported_limits(run: Run) -> set[float] | None:
    """Return the reported ε that are the limit of a client's ledger; None if some may be exact.

    All others are multiples of the budget. An exact ε grows from round to round, while a limit is one value.
    """
    budget, limits = run.budget or math.inf, set[float]()
    for values in _epsilons(run).values():
        multiples = {value for value in values if math.isclose(value / budget, round(value / budget))}
        others = {*values} - multiples
        if len(others) > 1 or (len(values) == 1 and not others <= {run.config.get("privacy.max_epsilon")}):
            return None
        limits |= others
    return limits


def _epsilons(run: Run) -> dict[str, list[float]]:
    """Return the values of ε that each client reported, in order."""
    reported: dict[str, list[float]] = {}
    for row in run.rows:
        for name, value in row.get("client_epsilons", {}).items():
            if value is not None:
                reported.setdefault(name, []).append(value)
    return reported


def held_out_examples(run: Run) -> list[str]:
    """Return what the held-out examples were used for without protection; empty if there are none."""
    count = run.record.get("held_out", {}).get("num_examples")
    if not count:
        return []
    uses = ["metrics on them were reported without noise"]
    if (run.record.get("class_weights") or {}).get("source") == HELD_OUT:
        uses.append("the class weights of all clients were computed from their labels")
    has_best = read_best_round(RunFolder(run.folder)) is not None
    uses += ["the round of adapter-best/ was chosen by them"] if has_best else []
    text = f"The {count:,} held-out examples: {'; '.join(uses)}."
    if has_best:
        text += " The guarantee covers adapter-best/, too: it holds for all rounds together, whichever of them is used."
    return [text]


def sites_test_files(run: Run) -> list[str]:
    """Return what real nodes' own test files were used for without protection; empty if no metrics on them are known.

    Only personalized models are evaluated by clients. Round 0 is evaluated by the server.
    """
    is_evaluated = any(row["server_round"] and row.get("loss") is not None for row in run.rows)
    if run.config.get("data.name") != "node" or not kept_parts(run) or not is_evaluated:
        return []
    return [
        "The held-out texts of sites that have their own (test-path): exact metrics on them were sent to the server by "
        "each such site, and their mean was reported, without noise, also with secure aggregation."
    ]


def drawn_rows(run: Run) -> list[str]:
    """Return what ε means if nodes used a part of their files; empty if they used all rows, or it is per client."""
    limit = run.config.get("data.max_train_examples")
    if run.config.get("data.name") != "node" or limit is None or run.claim.unit != "example":
        return []
    return [
        f"The effect of a row on which others were used: of each site's file, at most {limit:,} rows were drawn by a "
        "hash of each row. ε compares with the same file in which one row contributes nothing. A row that is added or "
        "removed can also exchange one other row: for both together, ε is twice as large, at a larger δ."
    ]


def kept_parts(run: Run) -> list[str]:
    """Return the trained parts that stay at the clients, whose models then differ."""
    return sorted(set(run.record.get("parts_trained", [])) - set(run.record.get("parts_sent", [])))


def read_classes(run: Run) -> list[str]:
    """Say that the names of the classes are not protected, if they were read from the labels of users' own data."""
    config = run.config
    has_classes = config.get("model.task") != "regression" and config.get("data.label_column") is not None
    if not has_classes or config.get("data.name") not in _OWN_CLASSES:
        return []
    return [
        "The names of the classes, which were read from the data and are stored with the model: a class of a single "
        "example reveals that it was there. Use classes that are known anyway."
    ]

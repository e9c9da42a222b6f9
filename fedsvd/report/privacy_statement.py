"""The privacy statement of a run, in plain language, for auditors and data protection officers.

Every sentence follows from the run's configuration and records; the mechanisms are those described in the README.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsvd.errors import FedSVDError
from fedsvd.privacy.noise_share import ASSUMPTIONS
from fedsvd.privacy.rounding import rounded_up
from fedsvd.report import claim_text
from fedsvd.report.document import Block, Bullets, Paragraph, Section, TableBlock, block_to_markdown
from fedsvd.report.loaded_runs import Run, read_run
from fedsvd.report.tables import client_cells

TITLE = "Privacy statement"
_PARTS = {"A": "LoRA factor A", "B": "LoRA factor B", "core": "LoRA core", "head": "classifier head"}
_ACCOUNTANTS = {
    "prv": "Opacus' privacy random variable accountant (Gopi et al. 2021, arXiv 2106.02848), upper bound",
    "rdp": "Opacus' Rényi differential privacy accountant (Mironov 2017, arXiv 1702.07476), converted to (ε, δ)",
}


def statement_markdown(folder: Path) -> str:
    """Return the privacy statement of a run directory as Markdown, with a second-level heading.

    Raises:
        RunError: The rows in the directory cannot be read.
        ConfigError: The configuration in the directory cannot be read.
    """
    section = statement_section(read_run(folder, folder))
    return "\n\n".join([f"## {section.title}", *(block_to_markdown(block) for block in section.blocks)]) + "\n"


def guarantee_line(folder: Path) -> str:
    """Return the guarantee of a run directory on one line; without readable rows, that nothing is claimed."""
    try:
        return claim_text.privacy_line(read_run(folder, folder).claim)
    except FedSVDError as error:
        return f"privacy: nothing is claimed ({error})"


def statement_section(run: Run) -> Section:
    """Return one run's guarantee, its assumptions, what it does not cover, and which data left each client."""
    if not run.claim.is_given:
        return Section(TITLE, [*claim_text.no_guarantee(run.claim), *_data_sent(run)])
    blocks = [
        *_guarantee(run),
        *_interrupted(run),
        *_spent_by_client(run),
        Paragraph("The guarantee assumes the following:"),
    ]
    blocks += [Bullets(_assumptions(run)), Paragraph("The guarantee does not cover the following:")]
    return Section(TITLE, [*blocks, Bullets(_not_covered(run)), *_data_sent(run)])


def _guarantee(run: Run) -> list[Block]:
    claim = run.claim
    if claim.epsilon is None:
        return [*claim_text.caveats(claim), Paragraph(claim_text.nothing_reported(claim), "note")]
    epsilon, delta = rounded_up(claim.epsilon, 2), claim.delta
    norm = max(claim.values("clipping_norm"))
    condition = "The run is" if claim.status == "private" else "Under this condition, the run is"
    if _client_level(run):
        unit, observers = "one client with all its data", "the other clients, and anyone who sees the model"
        mechanism = (
            f"each client's update was clipped to an L2 norm of {norm:g}; clients "
            "were sampled by secret coin flips, and Gaussian noise was added to the sum of their updates"
        )
    else:
        unit, observers = "one training example of one client", _observers(run)
        mechanism = (
            f"each client trained with DP-SGD: every example's gradient was clipped to an L2 norm of {norm:g}, batches "
            "were drawn by Poisson sampling, and Gaussian noise was added at every step"
        )
    accountants = " and ".join(_ACCOUNTANTS[str(name)] for name in claim.values("accountant"))
    return [
        *claim_text.caveats(claim),
        Paragraph(
            f"The unit of protection is {unit}. {condition} (ε, δ)-differentially private for it, with ε = {epsilon} "
            f"and δ = {delta:g} (ε is {_whose_epsilon(run)}, rounded up; {_budget(run)})."
        ),
        Paragraph(
            f"In plain terms: including or excluding {unit} changes the probability of anything that {observers} "
            f"could observe of this run by a factor of at most e^{epsilon}, except with a probability of about "
            f"{delta:g}. This holds regardless of what else they know and how they use it."
        ),
        *claim_text.stopped_early(claim, run.record.get("stopped_early")),
        Paragraph(
            f"Mechanism: {mechanism}. The privacy cost was computed over all rounds with {accountants}. Two data sets "
            f"are neighbors if they differ only in {unit}, which one of them contains and the other does not."
        ),
    ]


def _whose_epsilon(run: Run) -> str:
    # The totals of clients, which those report that were sampled, would tell which these are.
    return "that of this run" if _client_level(run) else "the largest over all clients"


def _interrupted(run: Run) -> list[Block]:
    if run.state == "finished":
        return []
    text = "The run has not finished. What an interrupted round has cost exactly is only in the clients' ledgers."
    return [Paragraph(text, "warning")]


def _budget(run: Run) -> str:
    """Describe the budget; a resumed run has that of a run once more, within the total of each ledger."""
    total = run.config.get("privacy.max_epsilon")
    if total is None or run.claim.epsilon is None or run.claim.epsilon <= float(run.budget or 0):
        return f"the budget was ε = {run.budget:g}"
    return f"the budget was ε = {run.budget:g} each time that the run was started, and ε = {total:g} in total"


def _observers(run: Run) -> str:
    server = "the server (which sees only the sum of the updates)" if _secure_aggregation(run) else "the server"
    return f"{server}, the other clients, and anyone who sees the model"


def _spent_by_client(run: Run) -> list[Block]:
    if _client_level(run):
        # A model card has this statement, too, and must not tell which clients were sampled.
        return []
    claim, clients = run.claim, run.privacy.get("clients", {})
    rows = [
        [name, *client_cells(client, claim.charges.get(name, ())), rounded_up(claim.client_epsilons[name], 4)]
        for name, client in sorted(clients.items(), key=lambda item: int(item[0]))
        if name in claim.client_epsilons
    ]
    if not rows:
        return []
    headings = ["client", "examples", "sample rate", "noise multiplier", "steps", "ε spent"]
    return [TableBlock(headings, rows, f"Privacy spent by each client at δ = {claim.delta:g}")]


def _assumptions(run: Run) -> list[str]:
    items = [
        f"Noise and batches were drawn {_generators(run)}, not from the experiment's seed, and nobody has observed "
        "them.",
        "The clients and the server ran the software as published; each client trusts its own machine.",
        "The numbers of examples, sample rates, noise multipliers and steps are public, as are all settings.",
        "Noise values are floating-point numbers. Each is combined from four draws, the known countermeasure to "
        "attacks that exploit gaps between floating-point numbers (Holohan and Braghin 2021, arXiv 2107.10138); it is "
        "not proven that this prevents such attacks entirely.",
    ]
    if not run.claim.every("secure_random"):
        items[0] += " Nobody has searched the seeds of torch's generators."
        items[-1] = (
            "Noise values are floating-point numbers. Those from torch's generators are single draws, whose gaps can "
            "reveal the exact sum (Mironov 2012; Jin et al. 2021, arXiv 2112.05307)."
        )
    if _client_level(run) and not _noise_shared(run):
        items.append(
            "The server is trusted: it saw each clipped update, knew which clients were sampled, and added the noise."
        )
    if _noise_shared(run):
        items += [f"{assumption[0].upper()}{assumption[1:]}." for assumption in ASSUMPTIONS]
    return items


def _generators(run: Run) -> str:
    chacha, torch = "from a ChaCha20 stream keyed by the operating system", "from torch's generators"
    if run.claim.every("secure_random"):
        return chacha
    return f"{chacha} in some rounds and {torch} in others" if run.claim.some("secure_random") else torch


def _not_covered(run: Run) -> list[str]:
    items = [
        "Settings that were chosen by looking at private data, and other runs on the same data: their privacy cost "
        "adds to this one. A client's ledger, where it is kept across runs, adds up what it was charged.",
        "Conclusions about people in general that follow from all the text, which differential privacy does not hide.",
    ]
    uncovered = (
        claim_text.held_out_examples, claim_text.sites_test_files, claim_text.read_classes, claim_text.drawn_rows
    )  # fmt: skip
    items[:0] = [item for describe in uncovered for item in describe(run)]
    if not _client_level(run):
        items.insert(
            0,
            "More than one example: for a person with k examples at one client, ε is k times as large, at a larger δ; "
            "for an example held by several clients, the privacy spent by each of them adds up.",
        )
    return items


def _data_sent(run: Run) -> list[Block]:
    private = run.claim.is_given
    trained = ", ".join(_PARTS[part] for part in run.record.get("parts_sent", [])) or "trained parts"
    if not private:
        protection = "none"
    elif _client_level(run):
        noise = (
            "each client adds its share of the noise" if _noise_shared(run) else "the server adds the noise to the sum"
        )
        protection = f"clipped by the client; {noise}"
    else:
        protection = "per-example clipping and Gaussian noise over all of it together (DP-SGD)"
    if _secure_aggregation(run):
        protection += "; the server sees only the sum over clients (secure aggregation)"
    rows = [[f"updates of: {trained}", "yes", protection]]
    if kept := claim_text.kept_parts(run):
        names = ", ".join(_PARTS[part] for part in kept)
        rows.append([names, "no", "stays at the client; metrics of each client's own model are reported"])
    counts = "number of examples, sample rate, noise multiplier" if private else "number of examples"
    if _secure_aggregation(run):
        rows.append([counts, "no", claim_text.summed_counts(run)])
    elif claim_text.withholds_counts(run):
        rows.append([counts, "no", claim_text.withheld_counts(run)])
    else:
        rows.append([counts, "yes", "none: public"])
    if private:
        rows.append(["steps and ε spent", "yes", claim_text.epsilon_protection(run)])
    if any(row.get("clipped_share") is not None for row in run.rows):
        rows.append(["share of examples clipped, mean gradient norm", "yes", "separate noise, within the same ε"])
    rows += [
        ["duration of each round", "yes", "none"],
        ["training loss", "no" if private else "yes", "stays at the client" if private else "none"],
        ["text, labels, individual gradients", "no", "stays at the client"],
    ]
    return [TableBlock(["data", "left the client?", "protection"], rows, "Data that left each client")]


def _client_level(run: Run) -> bool:
    return run.claim.unit == "client"


def _noise_shared(run: Run) -> bool:
    return run.claim.some("noise_share")


def _secure_aggregation(run: Run) -> bool:
    return run.claim.every("secure_aggregation")


def total_privacy_cost(runs: Sequence[Run]) -> Mapping[str, float] | None:
    """Return the total ``epsilon`` and ``delta`` of all private runs, by basic composition.

    Each run's ε is its largest over clients, so the sum bounds the privacy cost of any example, whichever client holds
    it (Dwork and Roth 2014, theorem 3.16). Returns None if no run has spent anything.
    """
    spent = [(run.epsilon, run.claim.delta) for run in runs if run.epsilon is not None]
    if not spent:
        return None
    return {"epsilon": sum(pair[0] for pair in spent), "delta": sum(pair[1] for pair in spent)}

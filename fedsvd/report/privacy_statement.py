"""The privacy statement of a run, in plain language, for those who must file or audit it.

Every sentence follows from the run's configuration and records; what README says of the mechanisms is its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsvd.report.document import Block, Bullets, Grid, Paragraph, Section, block_to_markdown
from fedsvd.report.loaded_runs import Run, read_run
from fedsvd.report.tables import rounded_up

TITLE = "Privacy statement"
_PARTS = {"A": "LoRA factor A", "B": "LoRA factor B", "core": "LoRA core", "head": "classifier head"}
_ACCOUNTANTS = {
    "prv": "the privacy-random-variable accountant (Gopi et al. 2021, arXiv 2106.02848) of Opacus, upper bound",
    "rdp": "Rényi differential privacy (Mironov 2017, arXiv 1702.07476) of Opacus, converted to (ε, δ)",
}


def statement_markdown(folder: Path) -> str:
    """Return the privacy statement of a run folder as Markdown, with a heading of the second level.

    Raises:
        RunError: The folder's rows cannot be read.
        ConfigError: Its configuration cannot be read.
    """
    section = statement(read_run(folder, folder))
    return "\n\n".join([f"## {section.title}", *(block_to_markdown(block) for block in section.blocks)]) + "\n"


def statement(run: Run) -> Section:
    """State what one run promises, to whom, on what assumptions, and what left each client."""
    if run.budget is None:
        return Section(TITLE, [*_no_promise(), *_what_left(run)])
    blocks = [*_promise(run), *_spends(run), Paragraph("The promise rests on this:"), Bullets(_assumptions(run))]
    return Section(TITLE, [*blocks, Paragraph("It does not cover this:"), Bullets(_not_covered(run)), *_what_left(run)])


def _no_promise() -> list[Block]:
    return [
        Paragraph(
            "This run was made without differential privacy (privacy=none). It gives no guarantee: the model, and "
            "every update on the way to it, may reveal the text that it was trained on.",
            "warning",
        )
    ]


def _promise(run: Run) -> list[Block]:
    delta, spent = run.config["privacy.target_delta"], run.epsilon
    if spent is None:
        return [Paragraph("Privacy was on, and no client has spent anything yet: nothing has left.", "note")]
    epsilon = rounded_up(spent, 2)
    if _client_level(run):
        unit, who = "one client with all its data", "the other clients, and anybody who sees the model"
        mechanism = (
            f"each client's update was clipped to an L2 norm of {run.config['privacy.max_update_norm']:g}; clients "
            "were drawn by secret coins, and Gaussian noise was added to the sum of their updates"
        )
    else:
        unit, who = "one training example of one client", _who_is_kept_out(run)
        mechanism = (
            f"each client trained with DP-SGD: every example's gradient was clipped to an L2 norm of "
            f"{run.config['privacy.max_grad_norm']:g}, batches were drawn by Poisson sampling, and Gaussian noise was "
            "added in every step"
        )
    return [
        Paragraph(
            f"The unit of protection is {unit}. The run is (ε, δ)-differentially private for it, with ε = {epsilon} "
            f"and δ = {delta:g} (the largest over all clients, rounded up; the budget was ε = {run.budget:g})."
        ),
        Paragraph(
            f"In plain words: whether or not {unit} was there changes the chance of anything that {who} could observe "
            f"of this run by a factor of at most e^{epsilon}, except with a chance of about {delta:g}. This holds "
            "whatever else they know, and however they use it."
        ),
        Paragraph(
            f"How: {mechanism}. The cost was counted over all rounds by "
            f"{_ACCOUNTANTS[str(run.config['privacy.accountant'])]}. Two data sets count as neighbours "
            f"when they are alike but for {unit}, which one has and the other has not."
        ),
    ]


def _who_is_kept_out(run: Run) -> str:
    server = "the server (which sees the sum of the updates alone)" if _hidden(run) else "the server"
    return f"{server}, the other clients, and anybody who sees the model"


def _spends(run: Run) -> list[Block]:
    clients = run.privacy.get("clients", {})
    if not any(client["epsilon"] is not None for client in clients.values()):
        return []
    rows = [
        [
            name,
            _told(client["num_examples"], "d"),
            _told(client["sample_rate"], ".4f"),
            _told(client["noise_multiplier"], ".3f"),
            _told(client["steps"], "d"),
            rounded_up(client["epsilon"], 4),
        ]
        for name, client in sorted(clients.items(), key=lambda item: int(item[0]))
        if client["epsilon"] is not None
    ]
    headings = ["client", "examples", "sample rate", "noise multiplier", "steps", "ε spent"]
    return [Grid(headings, rows, f"What each client has spent, at δ = {run.config['privacy.target_delta']:g}")]


def _assumptions(run: Run) -> list[str]:
    secure = run.config.get("privacy.secure_random", True)
    said = [
        "Noise and batches were drawn "
        + ("from a ChaCha20 stream that the operating system keyed" if secure else "from torch's generators")
        + ", not from the experiment's seed, and nobody has seen them.",
        "The software ran as published, at the clients and at the server; each client trusts its own machine.",
        "The numbers of examples, sample rates, noise multipliers and steps are public, as are all settings.",
        "Noise is a floating-point number. Each is made of four draws, the known countermeasure to attacks through "
        "gaps among floats (Holohan and Braghin 2021, arXiv 2107.10138); that nothing is left of them is not proved.",
    ]
    if not secure:
        said[0] += " These generators are not made to resist prediction."
    if _client_level(run) and not _shared(run):
        said.append("The server is trusted: it saw each clipped update, knew who was drawn, and added the noise.")
    said += [f"{assumption[0].upper()}{assumption[1:]}." for assumption in run.privacy.get("assumptions", [])]
    return said


def _not_covered(run: Run) -> list[str]:
    held_out = run.record.get("held_out", {})
    said = [
        "Settings that were chosen by looking at private data, and other runs on the same data: what they cost adds to "
        "this. A client's ledger, where it is kept from run to run, adds up what it was charged.",
        "What follows about people in general from the text of all, which differential privacy does not hide.",
    ]
    if held_out.get("num_examples"):
        count = f"{held_out['num_examples']:,}"
        said.insert(0, f"The {count} held-out examples: accuracy and loss on them were told without noise.")
    if not _client_level(run):
        said.insert(
            0,
            "More than one example: for somebody who stands behind k examples of a client, ε is k-fold, at a larger δ; "
            "for an example that several clients hold, what each of them spent adds up.",
        )
    return said


def _what_left(run: Run) -> list[Block]:
    private = run.budget is not None
    trained = ", ".join(_PARTS[part] for part in run.record.get("parts_sent", [])) or "trained parts"
    if not private:
        guarded = "nothing"
    elif _client_level(run):
        by = "each client adds its share of the noise" if _shared(run) else "the server adds the noise to the sum"
        guarded = f"clipped by the client; {by}"
    else:
        guarded = "per-example clipping and Gaussian noise over all of it together (DP-SGD)"
    if _hidden(run):
        guarded += "; the server sees the sum over clients alone (secure aggregation)"
    rows = [[f"updates of: {trained}", "yes", guarded]]
    home = sorted(set(run.record.get("parts_trained", [])) - set(run.record.get("parts_sent", [])))
    if home:
        kept = ", ".join(_PARTS[part] for part in home)
        rows.append([f"{kept}", "no", "it stays at the client; the accuracy of each client's own model is told"])
    counted = "number of examples, sample rate, noise multiplier" if private else "number of examples"
    if _hidden(run):
        rows.append([counted, "no", "hidden in the sum"])
    elif _uncounted(run):
        rows.append([counted, "no", "it stays at the client"])
    else:
        rows.append([counted, "yes", "nothing: public"])
    if private:
        rows.append(["steps and ε spent", "yes", "nothing: public"])
    if any(row.get("clipped_share") is not None for row in run.rows):
        rows.append(["share of examples clipped, mean gradient norm", "yes", "noise of their own, inside the same ε"])
    rows += [
        ["seconds that a round took", "yes", "nothing"],
        ["training loss", "no" if private else "yes", "it stays at the client" if private else "nothing"],
        ["text, labels, single gradients", "no", "they stay at the client"],
    ]
    return [Grid(["value", "left each client?", "protected by"], rows, "What left each client")]


def _client_level(run: Run) -> bool:
    return bool(run.config["privacy.name"] == "client_level")


def _uncounted(run: Run) -> bool:
    """Say whether the clients kept their numbers of examples to themselves."""
    clients = run.privacy.get("clients", {}).values()
    return bool(clients) and all(client["num_examples"] is None for client in clients)


def _shared(run: Run) -> bool:
    return bool(run.config.get("privacy.noise_share"))


def _hidden(run: Run) -> bool:
    return bool(run.config.get("federation.secure_aggregation"))


def _told(value: Any, how: str) -> str:
    return "–" if value is None else format(value, how)


def composed(runs: Sequence[Run]) -> Mapping[str, float] | None:
    """Return ``epsilon`` and ``delta`` that all private runs cost together, by basic composition.

    Each run's ε is its largest over clients, so that the sum bounds what any example can have cost, whoever held it
    (Dwork and Roth 2014, theorem 3.16). None where no run has spent anything.
    """
    spent = [
        (run.epsilon, run.config["privacy.target_delta"]) for run in runs if run.budget and run.epsilon is not None
    ]
    if not spent:
        return None
    return {"epsilon": sum(pair[0] for pair in spent), "delta": sum(pair[1] for pair in spent)}

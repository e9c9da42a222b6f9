"""Sections of a report on one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsvd.config.task import TASKS, task_name
from fedsvd.privacy.rounding import rounded_up
from fedsvd.report.diagnostics_plot import diagnostics_figure
from fedsvd.report.document import Block, Paragraph, Section, TableBlock, figure_block
from fedsvd.report.labels import clients_label, method_label, planned_rounds
from fedsvd.report.left_out import left_out_blocks
from fedsvd.report.loaded_runs import Run, changed_keys
from fedsvd.report.plots import accuracy_figure, counted_unit, partitions_figure, reference_accuracies
from fedsvd.report.privacy_statement import statement_section
from fedsvd.report.run_plots import epsilon_figure, traffic_and_time_figure
from fedsvd.report.tables import PHASES, has_client_counts, participation
from fedsvd.runs.best_round import EarlyStop, read_best_round
from fedsvd.runs.folder import RunFolder

# For long runs the plots show every round; tables show a sample that fits on a page.
_MAX_ROWS = 40


def run_sections(run: Run) -> list[Section]:
    """Return all sections on one run."""
    return [
        summary(run),
        run_configuration(run),
        accuracy(run),
        *generation_samples(run),
        *privacy_spent(run),
        *label_distribution(run),
        costs(run),
        *factor_spectrum(run),
        statement_section(run),
    ]


def summary(run: Run) -> Section:
    """Summarize the run in one sentence."""
    label = f"held-out {run.metric.label}"
    score = f"no {label}" if run.score is None else f"{label} {run.metric.format(run.score)}"
    if run.budget is None:
        spent = f"without a privacy guarantee: {run.claim.reason}"
    else:
        spent = f"at a budget of ε = {run.budget:g}, δ = {run.claim.delta:g}"
    if run.epsilon is not None:
        condition = ", if it was never resumed with other settings" if run.claim.status == "unrecorded" else ""
        spent += f" ({rounded_up(run.epsilon, 2)} spent{condition})"
    rounds, num_rounds = run.rows[-1]["server_round"], planned_rounds(run.config)
    blocks: list[Block] = [
        Paragraph(
            f"Method {method_label(run.config)}, model {run.config['model.source']}, data "
            f"{run.config['data.name']}, {clients_label(run.config)}: {score} after {rounds} of "
            f"{num_rounds} rounds, {spent}."
        )
    ]
    if run.state == "finished" and run.record.get("stopped_early"):
        blocks.append(Paragraph(f"The run {EarlyStop(**run.record['stopped_early'])}.", "note"))
    if run.state != "finished":
        outcome = "This run failed" if run.state == "failed" else "This run is unfinished"
        blocks.append(Paragraph(outcome + (f": {run.reason}" if run.reason else "."), "warning"))
    return Section("Summary", blocks)


def run_configuration(run: Run) -> Section:
    """List the command, the settings that differ from the defaults, and the provenance of the run."""
    changed = [[key, yaml_text(old), yaml_text(new)] for key, old, new in changed_keys(run)]
    command = "Command: fedsvd train " + " ".join(run.overrides)
    blocks: list[Block] = [Paragraph(command)] if run.overrides else []
    if changed:
        blocks.append(TableBlock(["key", "default", "this run"], changed, "Settings that differ from the defaults"))
    else:
        blocks.append(Paragraph("All settings have their default values."))
    return Section("Configuration", [*blocks, provenance(run), *left_out_blocks(run)])


def provenance(run: Run) -> TableBlock:
    """Return a table of the seed, versions, machine, data fingerprint and times of a run."""
    record = run.record
    rows = [["run directory", run.folder.name], ["seed", str(run.config["seed"])], ["state", run.state]]
    rows += [[key.replace("_at", ""), record[key]] for key in ("started_at", "finished_at") if record.get(key)]
    rows += [["versions", ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items())]]
    machine = record.get("machine", {})
    rows += [["machine", f"{machine['platform']}, {machine['cpu_count']} cores"]] if machine else []
    pooling = record.get("pooling")
    rows += [["pooling", pooling["summary"]]] if pooling else []
    rows += [["classification head", record["checkpoint_head"]]] if record.get("checkpoint_head") else []
    # Earlier versions recorded it with the pooling.
    corpus = record.get("public_text") or (pooling or {}).get("public_text")
    if corpus:
        uses = f", for {' and '.join(corpus['uses'])}" if "uses" in corpus else ""
        rows.append(["public text", f"{corpus['name']}, {corpus['num_texts']} texts, SHA-256 {corpus['sha256']}{uses}"])
    held_out = record.get("held_out")
    if held_out:
        rows.append(["held-out data", f"{held_out['num_examples']:,} examples, SHA-256 {held_out['fingerprint']}"])
    return TableBlock(["property", "value"], [row for row in rows if row[1]], "Provenance")


def accuracy(run: Run) -> Section:
    """Show the held-out metric over rounds, and a table of the rounds."""
    evaluated, metric = run.evaluated_rows, run.metric
    blocks: list[Block] = []
    if evaluated:
        first, last, best = evaluated[0], evaluated[-1], max(evaluated, key=lambda row: row[metric.key])
        start, end, top = (
            f"{metric.format(row[metric.key])} at round {row['server_round']}" for row in (first, last, best)
        )
        spent = ", and the largest ε spent." if run.epsilon else "."
        blocks.append(
            figure_block(
                accuracy_figure(run.rows, reference_accuracies(run.rows, run.config), metric),
                f"Held-out {metric.label} after each evaluated round{spent}",
                f"From {start} to {end}; best {top}." if len(evaluated) > 1 else f"Only {start}.",
            )
        )
    best_round = read_best_round(RunFolder(run.folder))
    blocks += [Paragraph(f"adapter-best/: {best_round}", "note")] if best_round else []
    return Section(f"{metric.title} over rounds", [*blocks, _rounds(run)])


def _rounds(run: Run) -> TableBlock:
    """Return a table of the rounds; columns without a value, and of metrics that earlier versions lack, are omitted."""
    metrics = TASKS[task_name(run.config)].metrics
    rows = [
        [
            str(row["server_round"]),
            *(item.format(row.get(item.key)) for item in metrics),
            "–" if row["loss"] is None else f"{row['loss']:.3f}",
            "–" if row.get("perplexity") is None else f"{row['perplexity']:.2f}",
            "–" if row["epsilon"] is None else rounded_up(row["epsilon"], 2),
            participation(row),
            "; ".join(f"{name}: {reason}" for name, reason in row.get("clients_refused", {}).items()),
        ]
        for row in _sample_rows(run.rows)
    ]
    labels = [item.label for item in metrics]
    headings = ["round", *labels, "loss", "perplexity", "largest ε", "clients", "excluded clients"]
    optional = (*labels[1:], "perplexity", "clients", "excluded clients")
    shown = [
        index
        for index, heading in enumerate(headings)
        if heading not in optional or any(row[index] not in ("–", "") for row in rows)
    ]
    return TableBlock([headings[index] for index in shown], [[row[index] for index in shown] for row in rows])


def generation_samples(run: Run) -> list[Section]:
    """Show a language model's answers to held-out prompts before and after training, if there are any."""
    rows = [[row.get(key, "") for key in ("prompt", "expected", "before", "generated")] for row in run.samples]
    table = TableBlock(["prompt", "expected", "before training", "after training"], rows, "The first held-out prompts")
    return [Section("Generation samples", [table])] if rows else []


def privacy_spent(run: Run) -> list[Section]:
    """Show the ε spent over rounds, by each client or by the run (client level), with the budget; empty if none is."""
    if run.epsilon is None or run.budget is None:
        return []
    whose, subject, rows = "by each client", "The largest", run.rows
    if run.claim.unit == "client":
        whose, subject, rows = "by this run", "It", [{**row, "client_epsilons": {}} for row in rows]
    alt_text = f"{subject} is {rounded_up(run.epsilon, 2)} of {run.budget:g} after round {rows[-1]['server_round']}."
    figure = figure_block(epsilon_figure(rows, run.budget), f"ε spent {whose}, and the budget.", alt_text)
    return [Section("Privacy spent", [figure])]


def label_distribution(run: Run) -> list[Section]:
    """Show the number of examples by client and class; empty unless the clients were simulated."""
    if not run.clients:
        return []
    counts = [client["examples_by_class"] for client in run.clients]
    # Earlier versions recorded no totals; each of their examples has one class.
    totals = [client.get("num_examples", sum(client["examples_by_class"].values())) for client in run.clients]
    rows = [
        [str(number), *(f"{value:,}" for value in count.values()), f"{total:,}", client["fingerprint"][:16] + "…"]
        for number, (client, count, total) in enumerate(zip(run.clients, counts, totals, strict=True))
    ]
    figure = partitions_figure(counts, counted_unit(run.config.get("model.task", "")))
    blocks: list[Block] = [
        figure_block(figure, "Labels of each client's training examples, by class.", "See the table below."),
        TableBlock(["client", *counts[0], "examples", "SHA-256 of the data"], rows),
        Paragraph("Known only because the clients were simulated; real clients do not disclose this.", "note"),
    ]
    if totals != [sum(count.values()) for count in counts]:
        blocks.append(Paragraph("An example counts once for each of its labels; it may have several, or none.", "note"))
    return [Section("Label distribution", blocks)]


def costs(run: Run) -> Section:
    """Show the traffic and the time of each round, and their totals."""
    seconds = [[phase, f"{sum(row[key] for row in run.rows):.2f}"] for key, phase in PHASES.items()]
    times = TableBlock(["phase", "seconds"], seconds, "Time by phase")
    if not all(map(has_client_counts, run.rows)):
        return Section("Time", [times])
    rounds = max(1, run.rows[-1]["server_round"])
    directions = {"bytes_down": "downlink (server to clients)", "bytes_up": "uplink (clients to server)"}
    totals = {direction: sum(row[key] for row in run.rows) for key, direction in directions.items()}
    traffic = [[direction, f"{total:,}", f"{total / rounds:,.0f}"] for direction, total in totals.items()]
    figure = figure_block(
        traffic_and_time_figure(run.rows), "Traffic and time of each round.", "See the tables below for the totals."
    )
    table = TableBlock(["direction", "bytes", "bytes per round"], traffic, "Traffic of all clients")
    return Section("Traffic and time", [figure, times, table])


def factor_spectrum(run: Run) -> list[Section]:
    """Show the spectrum of the factors and the share of clipped examples; empty if no round had a server step."""
    figure = diagnostics_figure(run.rows)
    if figure is None:
        return []
    stepped = [row for row in run.rows if row["sites"]]
    rows = []
    for row in _sample_rows(stepped):
        sites = row["sites"].values()
        values = [sum(site["singular_values"][k] for site in sites) / len(sites) for k in range(_lowest_rank(stepped))]
        clipped = row.get("clipped_share")
        rows.append(
            [
                str(row["server_round"]),
                ", ".join(f"{value:.3g}" for value in values),
                f"{sum(site['effective_rank'] for site in sites) / len(sites):.2f}",
                "–" if clipped is None else f"{clipped:.0%}",
            ]
        )
    caption = (
        "Singular values of BA, effective rank and angle between successive A factors (means over adapted layers), "
        "signal-to-noise ratio and clipping."
    )
    table = TableBlock(["round", "singular values of BA (mean over layers)", "effective rank", "clipped"], rows)
    return [Section("Spectrum of BA and clipping", [figure_block(figure, caption, "See the table below."), table])]


def _lowest_rank(rows: Sequence[Any]) -> int:
    return min(len(site["singular_values"]) for row in rows for site in row["sites"].values())


def yaml_text(value: Any) -> str:
    """Format a value as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sample_rows(rows: Sequence[Any]) -> list[Any]:
    """Return at most `_MAX_ROWS` evenly spaced rows, including the first and the last."""
    if len(rows) <= _MAX_ROWS:
        return list(rows)
    return [rows[round(k * (len(rows) - 1) / (_MAX_ROWS - 1))] for k in range(_MAX_ROWS)]

"""The parts of a report on one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsvd.report.diagnostics_plot import diagnostics_figure
from fedsvd.report.document import Block, Grid, Paragraph, Section, drawing
from fedsvd.report.loaded_runs import Run, changed_keys
from fedsvd.report.plots import accuracy_figure, partitions_figure
from fedsvd.report.privacy_statement import statement
from fedsvd.report.run_plots import costs_figure, spends_figure
from fedsvd.report.tables import PHASES, rounded_up

# Long runs: the plots hold every round, a table as many as a page does.
_MOST_ROWS = 40


def run_sections(run: Run) -> list[Section]:
    """Return all sections on one run."""
    return [
        summary(run),
        what_ran(run),
        _accuracy(run),
        *samples(run),
        *spends(run),
        *who_holds_what(run),
        _costs(run),
        *factors(run),
        statement(run),
    ]


def summary(run: Run) -> Section:
    """The run in a few words."""
    accuracy = "no held-out accuracy yet" if run.accuracy is None else f"held-out accuracy {run.accuracy:.1%}"
    spent = (
        "without privacy"
        if run.budget is None
        else f"at ε ≤ {run.budget:g}, δ = {run.config['privacy.target_delta']:g}"
    )
    if run.epsilon is not None:
        spent += f" ({rounded_up(run.epsilon, 2)} spent)"
    rounds, wanted = run.rows[-1]["server_round"], run.config["train.num_rounds"]
    blocks: list[Block] = [
        Paragraph(
            f"{run.config['method.name']} on {run.config['model.source']}, data {run.config['data.name']}, "
            f"{run.config['federation.num_clients']} clients: {accuracy} after {rounds} of {wanted} rounds, {spent}."
        )
    ]
    if run.state != "finished":
        why = run.record.get("reason")
        blocks.append(Paragraph(f"This run is {run.state}" + (f": {why}" if why else "."), "warning"))
    return Section("Summary", blocks)


def what_ran(run: Run) -> Section:
    """Overrides, the differences to the defaults, versions, seed, fingerprints, times."""
    changed = [[key, text(old), text(new)] for key, old, new in changed_keys(run)]
    blocks: list[Block] = [Paragraph("fedsvd train " + " ".join(run.overrides))] if run.overrides else []
    if changed:
        blocks.append(Grid(["key", "default", "this run"], changed, "What differs from the defaults"))
    else:
        blocks.append(Paragraph("Nothing differs from the defaults."))
    return Section("What was run", [*blocks, provenance(run)])


def provenance(run: Run) -> Grid:
    """Seed, versions, machine, fingerprints and times of a run."""
    record = run.record
    rows = [["run folder", run.folder.name], ["seed", str(run.config["seed"])], ["state", run.state]]
    rows += [[key.replace("_at", ""), record[key]] for key in ("started_at", "finished_at") if record.get(key)]
    rows += [["versions", ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items())]]
    machine = record.get("machine", {})
    rows += [["machine", f"{machine['platform']}, {machine['cpu_count']} cores"]] if machine else []
    held_out = record.get("held_out")
    if held_out:
        rows.append(["held-out data", f"{held_out['num_examples']:,} examples, SHA-256 {held_out['fingerprint']}"])
    return Grid(["what", "value"], [row for row in rows if row[1]], "Where it comes from")


def _accuracy(run: Run) -> Section:
    measured = run.measured
    blocks: list[Block] = []
    if measured:
        best = max(measured, key=lambda row: row["accuracy"])
        blocks.append(
            drawing(
                accuracy_figure(run.rows),
                "Held-out accuracy after each evaluated round" + (", and the largest ε spent." if run.epsilon else "."),
                f"From {measured[0]['accuracy']:.1%} at round {measured[0]['server_round']} to {run.accuracy:.1%} at "
                f"round {measured[-1]['server_round']}; best {best['accuracy']:.1%} at round {best['server_round']}.",
            )
        )
    rows = [
        [
            str(row["server_round"]),
            "–" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
            "–" if row["loss"] is None else f"{row['loss']:.3f}",
            "–" if row.get("perplexity") is None else f"{row['perplexity']:.2f}",
            "–" if row["epsilon"] is None else rounded_up(row["epsilon"], 2),
            f"{row['clients_used']}/{row['clients_sampled']}",
            "; ".join(f"{name}: {reason}" for name, reason in row["clients_refused"].items()),
        ]
        for row in _thinned(run.rows)
    ]
    headings = ["round", "accuracy", "loss", "perplexity", "largest ε", "clients", "went on without"]
    # A column that says nothing is left out.
    shown = [index for index in range(len(headings)) if index != 3 or any(row[3] != "–" for row in rows)]
    shown = [index for index in shown if index != 6 or any(row[6] for row in rows)]
    headings, rows = [headings[index] for index in shown], [[row[index] for index in shown] for row in rows]
    return Section("Accuracy over rounds", [*blocks, Grid(headings, rows)])


def samples(run: Run) -> list[Section]:
    """What a language model answers to held-out prompts, before and after training."""
    rows = [[row.get(key, "") for key in ("prompt", "expected", "before", "generated")] for row in run.samples]
    table = Grid(["prompt", "expected", "before training", "after"], rows, "The first few held-out prompts")
    return [Section("Generation samples", [table])] if rows else []


def spends(run: Run) -> list[Section]:
    """ε of each client over rounds, against the budget."""
    if run.epsilon is None or run.budget is None:
        return []
    figure = spends_figure(run.rows, run.budget)
    told = f"The largest is {rounded_up(run.epsilon, 2)} of {run.budget:g} after round {run.rows[-1]['server_round']}."
    return [Section("Spend of each client", [drawing(figure, "ε spent by each client, against its budget.", told)])]


def who_holds_what(run: Run) -> list[Section]:
    """Examples by client and class, where the clients were simulated."""
    if not run.clients:
        return []
    counts = [client["examples_by_class"] for client in run.clients]
    classes = list(counts[0])
    rows = [
        [str(number), *(f"{client['examples_by_class'][name]:,}" for name in classes),
         f"{sum(client['examples_by_class'].values()):,}", client["fingerprint"][:16] + "…"]
        for number, client in enumerate(run.clients)
    ]  # fmt: skip
    blocks: list[Block] = [
        drawing(partitions_figure(counts), "Training examples of each client, by class.", "The table has the numbers."),
        Grid(["client", *classes, "in all", "SHA-256 of the data"], rows),
        Paragraph("Known because these clients were simulated; of real clients a server learns no such thing.", "note"),
    ]
    return [Section("Who holds which labels", blocks)]


def _costs(run: Run) -> Section:
    seconds = [[what, f"{sum(row[key] for row in run.rows):.2f}"] for key, what in PHASES.items()]
    rounds = max(1, run.rows[-1]["server_round"])
    traffic = [
        [what, f"{total:,}", f"{total / rounds:,.0f}"]
        for what, total in (
            ("from the server to the clients", sum(row["bytes_down"] for row in run.rows)),
            ("from the clients to the server", sum(row["bytes_up"] for row in run.rows)),
        )
    ]
    figure = drawing(costs_figure(run.rows), "Bytes and seconds of each round.", "The tables have the sums.")
    tables = [
        Grid(["phase", "seconds"], seconds, "Seconds by phase"),
        Grid(["bytes", "in all", "a round"], traffic, "Traffic of all clients together"),
    ]
    return Section("Bytes and seconds", [figure, *tables])


def factors(run: Run) -> list[Section]:
    """What the rounds did to the factors, and how much was clipped."""
    figure = diagnostics_figure(run.rows)
    if figure is None:
        return []
    stepped = [row for row in run.rows if row["sites"]]
    rows = []
    for row in _thinned(stepped):
        sites = row["sites"].values()
        values = [sum(site["singular_values"][k] for site in sites) / len(sites) for k in range(_least_rank(stepped))]
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
        "Singular values of BA, effective rank and the angle of A (means over sites), signal to noise and clipping."
    )
    grid = Grid(["round", "singular values of BA, mean over sites", "effective rank", "clipped"], rows)
    return [Section("Spectrum of BA, and clipping", [drawing(figure, caption, "The table has the numbers."), grid])]


def _least_rank(rows: Sequence[Any]) -> int:
    return min(len(site["singular_values"]) for row in rows for site in row["sites"].values())


def text(value: Any) -> str:
    """Write a value as YAML would."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _thinned(rows: Sequence[Any]) -> list[Any]:
    """Return so many rows as a page holds, evenly spaced, the first and the last among them."""
    if len(rows) <= _MOST_ROWS:
        return list(rows)
    return [rows[round(k * (len(rows) - 1) / (_MOST_ROWS - 1))] for k in range(_MOST_ROWS)]

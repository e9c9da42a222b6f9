"""Progress of a run: live bars in a terminal or notebook, one line per round elsewhere, and the tables at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedsvd.config.task import ACCURACY, Metric
from fedsvd.privacy.rounding import rounded_up
from fedsvd.report.client_status import status_line
from fedsvd.report.console import output_console, shows_bars
from fedsvd.report.figures import log_failure
from fedsvd.report.literal import literal
from fedsvd.report.tables import clients_table, phases_table, rounds_table
from fedsvd.runs.client_status import EXCLUDED, ClientStatus


class Reporter:
    """Report the progress and the result of a run on the console.

    Args:
        folder: Run directory, printed at the end.
        num_rounds: Total number of rounds.
        target_delta: δ at which ε is reported.
        unit: Unit of protection, ``example`` or ``client``.
        assumptions: Assumptions of the guarantee beyond the mechanism; printed at the end.
        metric: The metric that is shown beside the loss.
        console: Where to print; defaults to standard output.
        shows_statuses: Whether a line is printed for each change of a client's state, as on real nodes.
        shows_clients: Whether a bar counts the replies of a round.
    """

    def __init__(
        self,
        folder: Path,
        num_rounds: int,
        target_delta: float,
        unit: str = "example",
        assumptions: Sequence[str] = (),
        metric: Metric = ACCURACY,
        console: Console | None = None,
        *,
        shows_statuses: bool = False,
        shows_clients: bool = True,
    ) -> None:
        self.folder = folder
        self.num_rounds = num_rounds
        self.target_delta = target_delta
        self.unit = unit
        self.assumptions = assumptions
        self.metric = metric
        self.console = console or output_console()
        self.shows_statuses = shows_statuses
        self._progress = Progress(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[summary]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not shows_bars(self.console),
        )
        self._last_evaluation = ""
        self._rounds = self._progress.add_task("rounds", total=num_rounds, summary="")
        self._clients = self._progress.add_task("clients", total=None, summary="", visible=shows_clients)

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, rounds_done: int, clients_per_round: int) -> None:
        """Handle the start of the run, after ``rounds_done`` rounds of an earlier process."""
        if rounds_done:
            self.console.print(f"resuming after round {rounds_done} of {self.num_rounds}")
        self._progress.update(self._rounds, completed=rounds_done)
        self._progress.update(self._clients, total=clients_per_round)

    def reply_arrived(self, message: object) -> None:
        """Handle the reply of a client."""
        self._progress.advance(self._clients)

    @log_failure
    def round_done(self, row: Mapping[str, Any]) -> None:
        """Handle the end of a round that has been evaluated and written."""
        if row["loss"] is not None:
            self._last_evaluation = f"{_format_evaluation(row, self.metric)} at round {row['server_round']}"
        summary = "  ".join(part for part in (self._last_evaluation, _format_spent(row)) if part)
        self._progress.update(self._rounds, completed=row["server_round"], summary=summary)
        self._progress.reset(self._clients)
        if not shows_bars(self.console):
            self.console.print(
                f"round {row['server_round']}/{self.num_rounds}  {_format_round(row, self.metric)}", soft_wrap=True
            )
        # Where clients' states are shown, this was said when it happened.
        for client, reason in ({} if self.shows_statuses else row.get("clients_refused", {})).items():
            self.console.print(literal(f"  excluded client {client}: {reason}", "yellow"), soft_wrap=True)

    @log_failure
    def statuses_changed(self, clients: Sequence[int], status: ClientStatus) -> None:
        """Handle a change of clients' states."""
        if self.shows_statuses:
            style = "yellow" if status.state == EXCLUDED else ""
            self.console.print(literal(status_line(clients, status), style), soft_wrap=True)

    def note(self, message: str) -> None:
        """Print a line about the run."""
        self.console.print(literal(message), soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a warning about a problem that does not end the run."""
        self.console.print(literal(f"warning: {message}", "yellow"), soft_wrap=True)

    @log_failure
    def finished(
        self, rows: Sequence[Mapping[str, Any]], clients: Mapping[str, Mapping[str, Any]], guarantee: str = ""
    ) -> None:
        """Print the tables of rounds, privacy spent and time by phase, the guarantee, and the files of the run."""
        self.console.print(rounds_table(rows, self.metric))
        if any(client["epsilon"] is not None for client in clients.values()):
            self.console.print(clients_table(clients, self.target_delta, self.unit))
        if guarantee:
            self.console.print(literal(guarantee), soft_wrap=True)
        for assumption in self.assumptions:
            self.console.print(literal(f"ε assumes that {assumption}"), soft_wrap=True)
        self.console.print(phases_table(rows))
        self.console.print(literal("run directory", "bold"), literal(f" {self.folder}"), soft_wrap=True)
        for name, description in _CONTENTS.items():
            if not (self.folder / name).exists():
                continue
            self.console.print(f"  {name:15} {description}", highlight=False)


_CONTENTS = {
    "adapter/": "final PEFT adapter; for other programs, use fedsvd export",
    "adapter-best/": "adapter of the best evaluated round, for --best",
    "metrics.jsonl": "metrics, one row per round",
    "privacy.json": "privacy spent by each client",
    "plots/": "accuracy, diagnostics, label distribution",
    "checkpoints/": "used by fedsvd train resume=RUN_DIR",
    "samples.json": "answers before and after training",
    "config.yaml": "composed configuration",
}


def _format_round(row: Mapping[str, Any], metric: Metric) -> str:
    parts = []
    if row["loss"] is not None:
        parts.append(_format_evaluation(row, metric))
    if row["epsilon"] is not None:
        parts.append(_format_spent(row))
    if row["skipped"]:
        parts.append("skipped")
    return "  ".join(parts)


def _format_evaluation(row: Mapping[str, Any], metric: Metric) -> str:
    perplexity = row.get("perplexity")
    loss = f"loss {row['loss']:.3f}" if perplexity is None else f"perplexity {perplexity:.2f}"
    return f"{loss}  {metric.label} {metric.format(row.get(metric.key))}"


def _format_spent(row: Mapping[str, Any]) -> str:
    return "" if row["epsilon"] is None else f"ε ≤ {rounded_up(row['epsilon'], 2)}"

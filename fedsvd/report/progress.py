"""Live progress in a terminal, plain lines elsewhere, and the tables at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedsvd.report.tables import clients_table, phases_table, rounded_up, rounds_table


class Reporter:
    """Tell of a run as it goes on.

    Args:
        folder: The run folder, named at the end.
        num_rounds: Rounds in all.
        target_delta: The δ at which ε is told.
        unit: What ε protects: ``example`` or ``client``.
        assumptions: What ε hangs on beside the mechanism; printed at the end.
        console: Where to write; by default standard output.
    """

    def __init__(
        self,
        folder: Path,
        num_rounds: int,
        target_delta: float,
        unit: str = "example",
        assumptions: Sequence[str] = (),
        console: Console | None = None,
    ) -> None:
        self.folder = folder
        self.num_rounds = num_rounds
        self.target_delta = target_delta
        self.unit = unit
        self.assumptions = assumptions
        self.console = console or Console()
        self._progress = Progress(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._measured = ""
        self._rounds = self._progress.add_task("rounds", total=num_rounds, said="")
        self._clients = self._progress.add_task("clients", total=None, said="")

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, rounds_done: int, clients_a_round: int) -> None:
        """The run starts, after ``rounds_done`` rounds of an earlier process."""
        if rounds_done:
            self.console.print(f"resuming after round {rounds_done} of {self.num_rounds}")
        self._progress.update(self._rounds, completed=rounds_done)
        self._progress.update(self._clients, total=clients_a_round)

    def reply_arrived(self, message: object) -> None:
        """A client has answered."""
        self._progress.advance(self._clients)

    def round_done(self, row: Mapping[str, Any]) -> None:
        """A round has been evaluated and written."""
        if row["accuracy"] is not None:
            self._measured = f"{_measured(row)} at round {row['server_round']}"
        said = "  ".join(part for part in (self._measured, _spent(row)) if part)
        self._progress.update(self._rounds, completed=row["server_round"], said=said)
        self._progress.reset(self._clients)
        if not self.console.is_terminal:
            self.console.print(f"round {row['server_round']}/{self.num_rounds}  {_headline(row)}", soft_wrap=True)
        for client, reason in row["clients_refused"].items():
            self.console.print(f"  without client {client}: {reason}", style="yellow", soft_wrap=True)

    def warn(self, said: str) -> None:
        """Something went wrong that does not end the run."""
        self.console.print(f"warning: {said}", style="yellow", soft_wrap=True, markup=False)

    def finished(self, rows: Sequence[Mapping[str, Any]], clients: Mapping[str, Mapping[str, Any]]) -> None:
        """Print the tables: rounds, spends, seconds by phase, and where everything lies."""
        self.console.print(rounds_table(rows))
        if any(client["epsilon"] is not None for client in clients.values()):
            self.console.print(clients_table(clients, self.target_delta, self.unit))
        for assumption in self.assumptions:
            self.console.print(f"ε holds if {assumption}", soft_wrap=True, highlight=False)
        self.console.print(phases_table(rows))
        self.console.print(f"[bold]run folder[/bold]  {self.folder}", soft_wrap=True, highlight=False)
        for name, what in _CONTENTS.items():
            self.console.print(f"  {name:20} {what}", highlight=False)


_CONTENTS = {
    "adapter/": "the final PEFT adapter (PeftModel.from_pretrained)",
    "metrics.jsonl": "a row a round",
    "privacy.json": "what each client spent (with privacy on)",
    "plots/": "accuracy, diagnostics (factors, clipping, noise), partitions (who holds what)",
    "checkpoints/": "fedsvd train resume=RUN_FOLDER goes on from here",
    "samples.json": "answers before and after (of a language model)",
    "config.yaml": "the resolved configuration",
}


def _headline(row: Mapping[str, Any]) -> str:
    said = []
    if row["accuracy"] is not None:
        said.append(_measured(row))
    if row["epsilon"] is not None:
        said.append(_spent(row))
    if row["skipped"]:
        said.append("skipped")
    return "  ".join(said)


def _measured(row: Mapping[str, Any]) -> str:
    if row.get("perplexity") is None:
        return f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.1%}"
    return f"perplexity {row['perplexity']:.2f}  exact match {row['accuracy']:.1%}"


def _spent(row: Mapping[str, Any]) -> str:
    return "" if row["epsilon"] is None else f"ε ≤ {rounded_up(row['epsilon'], 2)}"

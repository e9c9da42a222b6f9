"""The end of each round: evaluate on held-out data, write the run directory and a checkpoint, report progress."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord

from fedsvd.config import Config
from fedsvd.config.quoting import resume_command
from fedsvd.errors import DivergedError, RunError
from fedsvd.lora import peft_model
from fedsvd.privacy.round_settings import ROW_KEY
from fedsvd.report.progress import Reporter
from fedsvd.runs.folder import RunFolder, read_json, write_json, write_rows
from fedsvd.runs.outgoing import outgoing_row
from fedsvd.runtime.data import load_test_batches
from fedsvd.runtime.losses import load_prefix_cache, run_objective
from fedsvd.runtime.model import load_model, resolve_device, sample_answers
from fedsvd.tracking import LogRow
from fedsvd.training.evaluation import evaluate
from server.best_adapter import best_round
from server.checkpoint import Checkpoint, save_checkpoint
from server.diagnostics import mean_clipping_statistics
from server.early_stopping import StoppedEarly, early_stop_of
from server.replies import RoundRecord
from server.round_privacy import largest_epsilon, last_value, privacy_document, round_privacy
from server.strategy import FederatedLoRA

logger = logging.getLogger(__name__)


class RoundEndCallback:
    """Called by Flower after each round (and before the first) with the round's number.

    Args:
        config: The run's configuration.
        folder: The run directory.
        strategy: The strategy, whose adapter is evaluated and saved.
        reporter: Receives each row of ``metrics.jsonl``, to show progress.
        listeners: Called with each row, such as to log it to an experiment tracker.
        checkpoint: The checkpoint that the run resumes from, if any.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        strategy: FederatedLoRA,
        reporter: Reporter,
        listeners: Sequence[LogRow],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.strategy = strategy
        self.reporter = reporter
        self.listeners = listeners
        self.history: list[dict[str, Any]] = list(checkpoint.history) if checkpoint else []
        self.start = 1 + last_value(self.history, "start") if checkpoint else 0
        self.interrupted = int(read_json(folder.record).get("interrupted", 0))
        self.clients: dict[str, Any] = _latest_spends(folder, checkpoint) if checkpoint else {}

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate, write and report; return the held-out metrics to Flower, or None if there are none.

        Raises:
            StoppedEarly: If the run ends here, before its last planned round.
            DivergedError: If the held-out loss is not finite.
            RunError: If the run directory cannot be written.
        """
        this_round = self.strategy.first_round + server_round
        record = self.strategy.round if server_round else RoundRecord(0, 0)
        if server_round == 0 and self.strategy.first_round:
            # The previous process may have been interrupted after its last checkpoint and before it wrote these files.
            write_rows(self.folder.metrics, self.history)
            self._write_privacy()
            self._check_early_stop()
            return None
        self._update_spends(record)
        row = self._row(record, self._evaluate(this_round))
        row["epsilon"] = largest_epsilon(self.config, [*self.history, row], self.clients)
        self.history.append(row)
        self._write(this_round, row)
        # A SuperLink passes on what is printed.
        self.reporter.round_done(outgoing_row(row, self.config))
        for listener in self.listeners:
            listener(row)
        self._check_early_stop()
        if row["loss"] is None:
            return None
        return MetricRecord({key: row[key] for key in ("accuracy", "loss") if row[key] is not None})

    def _check_early_stop(self) -> None:
        if early_stop_of(self.config, self.history):
            raise StoppedEarly

    def finish(self) -> None:
        """Write a language model's answers to a few held-out prompts to the run directory."""
        if self.config.model.task == "causal_lm":
            peft_model.write(load_model(self.config), self.strategy.adapter)
            write_json(self.folder.samples, self._samples(sample_answers(self.config)))

    def _samples(self, after: list[dict[str, str]]) -> list[dict[str, str]]:
        with load_model(self.config).disable_adapter():
            before = [row["generated"] for row in sample_answers(self.config)]
        return [{**row, "before": answer} for row, answer in zip(after, before, strict=True)]

    def _evaluate(self, this_round: int) -> dict[str, Any]:
        personal = self.strategy.round.personal_metrics
        unknown = {"accuracy": None, "loss": None, "seconds_evaluate": 0.0}
        if not self.config.train.is_evaluated(this_round) or not (personal or load_test_batches(self.config)):
            return unknown
        if personal:
            return {**personal, "seconds_evaluate": 0.0}
        if this_round and self.strategy.method.traits.personal:
            # The global adapter lacks the clients' own factors: its metrics would look like a collapse.
            logger.warning("round %d has no metrics: no client reported those of its own model", this_round)
            return unknown
        model = load_model(self.config)
        peft_model.write(model, self.strategy.adapter)
        device = resolve_device(self.config.device)
        objective, prefix = run_objective(self.config), load_prefix_cache(self.config)
        result = evaluate(model, load_test_batches(self.config), device, objective, prefix)
        if not math.isfinite(result.loss):
            raise DivergedError(
                f"held-out loss after round {this_round} is {result.loss}: the model has diverged, and more rounds "
                f"would waste privacy; decrease train.learning_rate ({self.config.train.learning_rate:g})."
            )
        return {"accuracy": None, **result.metrics, "loss": result.loss, "seconds_evaluate": result.seconds}

    def _update_spends(self, record: RoundRecord) -> None:
        per_round = ("seconds", "train_loss", "server_round", "loss", "metrics")
        for report in record.reports:
            before = self.clients.get(str(report.partition_id), {}).get("epsilon")
            # ε falls if a node's owner opens a new account during the run. The largest report is kept; the claim, which
            # follows from the rows, is at least the ε of the charges to both accounts.
            if before is not None and report.epsilon is not None and report.epsilon < before:
                continue
            spent = {key: value for key, value in vars(report).items() if key not in per_round}
            self.clients[str(report.partition_id)] = spent

    def _row(self, record: RoundRecord, metrics: dict[str, Any]) -> dict[str, Any]:
        losses = [report.train_loss for report in record.reports if report.train_loss is not None]
        level = self.strategy.client_level
        # Under client-level privacy, clients report ε once they were sampled: the row's must not depend on it.
        clients = () if level else self.clients.values()
        spends = [client["epsilon"] for client in clients if client["epsilon"] is not None]
        return {
            "server_round": record.server_round,
            **metrics,
            "perplexity": self._perplexity(metrics["loss"]),
            "train_loss": sum(losses) / len(losses) if losses else None,
            "epsilon": max(spends, default=None) if record.epsilon is None else record.epsilon,
            "client_epsilons": {name: client["epsilon"] for name, client in sorted(self.clients.items())},
            "clients_sampled": record.sampled,
            "clients_used": 0 if record.skipped else len(record.reports),
            "clients_refused": {str(key): reason for key, reason in sorted(record.refused.items())},
            "replies_dropped": record.dropped,
            "skipped": record.skipped,
            "signal_to_noise": record.signal_to_noise,
            **mean_clipping_statistics(record.reports),
            "bytes_down": record.bytes_down,
            "bytes_up": record.bytes_up,
            "seconds_train": record.seconds_train,
            "seconds_aggregate": record.seconds_aggregate,
            # Set after writing the checkpoint, so a resumed run has 0 for the round that it resumes from.
            "seconds_write": 0.0,
            "sites": record.sites,
            ROW_KEY: round_privacy(
                self.config, record, self.history, self.start, self.interrupted, level.spend if level else None
            ),
        }

    def _perplexity(self, loss: float | None) -> float | None:
        """Return a language model's perplexity; its loss is the mean per token."""
        return math.exp(loss) if loss is not None and self.config.model.task == "causal_lm" else None

    def _write_privacy(self) -> None:
        write_json(self.folder.privacy, privacy_document(self.config, self.history, self.clients))

    def _write(self, this_round: int, row: dict[str, Any]) -> None:
        started = time.perf_counter()
        try:
            # Written first: spending must be recorded even if the other files cannot be written.
            self._write_privacy()
            adapter = self.strategy.adapter.to(torch.device("cpu"))
            checkpoint = Checkpoint(this_round, adapter, self.history, self.clients, self.strategy.state)
            kept = best_round(self.config, self.folder, self.history)
            save_checkpoint(self.folder.checkpoints, checkpoint, kept)
            row["seconds_write"] = time.perf_counter() - started
            write_rows(self.folder.metrics, self.history)
        except OSError as error:
            raise RunError(
                f"round {this_round} cannot be written to {self.folder.root} ({error}): free disk space, then "
                f"continue with {resume_command(self.folder.root)}"
            ) from error


def _latest_spends(folder: RunFolder, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return each client's latest reported spending, from the checkpoint or from ``privacy.json``.

    A round after the last checkpoint is repeated, but the privacy that clients spent on it still counts.
    """
    clients = dict(checkpoint.clients)
    if folder.privacy.exists():
        for number, spent in read_json(folder.privacy).get("clients", {}).items():
            if (spent["steps"] or 0) > (clients.get(number, spent)["steps"] or 0) or number not in clients:
                clients[number] = spent
    return clients

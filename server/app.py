"""The Flower ServerApp: compose the configuration, build method and strategy, run, and write the run directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsvd.config import Config
from fedsvd.config.compose import as_dict, to_yaml
from fedsvd.config.flat import flatten
from fedsvd.config.run_config import from_run_config
from fedsvd.config.task import TASKS
from fedsvd.launch.budget import check_remaining_budget
from fedsvd.launch.resume import check_new, check_resume, check_run_dir
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter
from fedsvd.lora.frozen_weights import frozen_weights
from fedsvd.methods import build_run_method
from fedsvd.privacy.noise_share import ASSUMPTIONS
from fedsvd.report.claim_text import privacy_line
from fedsvd.report.console import output_console
from fedsvd.report.diagnostics_plot import plot_diagnostics
from fedsvd.report.plots import counted_unit, plot_accuracy, plot_partitions
from fedsvd.report.progress import Reporter
from fedsvd.report.running import RunningReport
from fedsvd.runs.best_round import BestRound, EarlyStop
from fedsvd.runs.folder import RunFolder, read_json, run_root, write_json, write_text
from fedsvd.runs.outgoing import outgoing_row
from fedsvd.runs.ownership import is_owned, owned
from fedsvd.runs.record import interruptions, record_run
from fedsvd.runtime.base_model import save_standardization
from fedsvd.runtime.data import class_names, partition_counts
from fedsvd.runtime.description import describe_classifier, describe_partitions, describe_reports, describe_run
from fedsvd.runtime.model import check_model, initial_adapter, load_model, resolve_device
from fedsvd.runtime.round_maps import check_server_maps
from fedsvd.runtime.rounding import check_rounding
from fedsvd.runtime.run_checks import check_run
from fedsvd.services.reconnects import log_reconnects_once
from fedsvd.tracking import open_tracker
from fedsvd.wire import payload
from server.best_adapter import write_best_adapter
from server.client_level import ClientLevelServer
from server.early_stopping import StoppedEarly, check_evaluated, early_stop_of
from server.evaluation import RoundEndCallback
from server.live_status import LiveStatus
from server.outcome import check_updates_used
from server.personal_factors import PersonalFactors
from server.polling_grid import PollingGrid
from server.resumed_start import load_start
from server.retry_grid import RetryGrid
from server.round_privacy import claim_of, privacy_document
from server.secure_grid import SecureGrid
from server.strategy import FederatedLoRA

app = ServerApp()

# The earlier process may be evaluating, and notices afterwards that it has ended.
_HANDOVER_S = 300.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that is configured by the run's overrides."""
    log_reconnects_once()
    config = from_run_config(context.run_config)
    check_run(config)
    check_run_dir(config)
    folder = RunFolder(run_root(config.run_dir, context.run_id))
    with _owned_on_server(config, folder):
        _run(grid, config, folder, context.run_id)


@contextmanager
def _owned_on_server(config: Config, folder: RunFolder) -> Iterator[None]:
    """Own the run directory in a process that Flower has started; ``fedsvd train`` runs the ServerApp in its own.

    A run that the SuperLink has lost may be resumed before the ServerApp of the lost run has noticed, and has ended.
    """
    if config.federation.name != "remote" and is_owned(folder.root):
        yield
        return
    folder.root.mkdir(parents=True, exist_ok=True)
    with owned(folder.root, _HANDOVER_S):
        yield


def _run(grid: Grid, config: Config, folder: RunFolder, run_id: int) -> None:
    facts = {**describe_run(config), "run_id": run_id}
    check_evaluated(config, facts)
    if config.resume is None:
        check_new(folder)
    else:
        check_resume(folder, config, facts)
        facts["interrupted"] = interruptions(read_json(folder.record))
        for warning in check_remaining_budget(config):
            output_console().print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False)
    with record_run(folder, facts, resumed=config.resume is not None) as record:
        stopped = serve(grid, config, folder)
        if stopped:
            record["stopped_early"] = asdict(stopped)
    if config.plots:
        RunningReport(folder).write()


def serve(grid: Grid, config: Config, folder: RunFolder) -> EarlyStop | None:
    """Build the strategy, run all rounds, and write the results; return why rounds were left out, if any were."""
    method = build_run_method(config)
    check_model(config)
    check_server_maps(config)
    adapter = initial_adapter(config, method)
    checkpoint = load_start(folder.checkpoints, adapter, config.seed) if config.resume else None
    _write_inputs(config, folder)
    device = resolve_device(config.device)
    adapter = (checkpoint.adapter if checkpoint else adapter).to(device)
    saved_state = checkpoint.state if checkpoint else {}
    state = {key: {name: t.to(device) for name, t in tensors.items()} for key, tensors in saved_state.items()}
    client_level = ClientLevelServer(config, folder.server_ledger) if config.privacy.name == "client_level" else None
    first_round = checkpoint.server_round if checkpoint else 0
    check_rounding(config, adapter, first_round + 1)
    federation = config.federation
    with _reporter(config, folder) as reporter, open_tracker(config, folder, reporter.warn) as track:
        polling: Grid = PollingGrid(grid, reporter.reply_arrived)
        # The second grid is for the stages without training: their replies are not reported as progress.
        is_secure = federation.secure_aggregation
        secure = SecureGrid(polling, federation.min_survivors, PollingGrid(grid)) if is_secure else None
        weights = frozen_weights(load_model(config))
        history = checkpoint.history if checkpoint else ()
        live = LiveStatus(config, folder, reporter, history)
        personal = PersonalFactors.of_run(method, folder, saved_state, history, config.train.head_rounds)
        strategy = FederatedLoRA(
            method, config, adapter, first_round, client_level, secure, state, weights, live.board, personal
        )
        listeners = (track, live.round_done, *([RunningReport(folder).round_done] if config.plots else ()))
        callback = RoundEndCallback(config, folder, strategy, reporter, listeners, checkpoint)
        reporter.started(strategy.first_round, federation.num_sampled)
        for note in (*describe_classifier(config), *describe_reports(config)):
            reporter.note(note)
        _run_rounds(strategy, secure or _retrying(polling, strategy, config), config, adapter, callback)
        check_updates_used(callback.history, strategy.round.refusal, hides_clients=config.privacy.hides_sampling)
        callback.finish()
        best = _write_result(config, folder, strategy, callback.history)
    return _report_end(config, reporter, callback, best)


def _reporter(config: Config, folder: RunFolder) -> Reporter:
    privacy = config.privacy
    return Reporter(
        folder.root,
        config.train.rounds,
        privacy.target_delta,
        "client" if privacy.name == "client_level" else "example",
        ASSUMPTIONS if privacy.noise_share else (),
        TASKS[config.task].metrics[0],
        shows_statuses=config.federation.name == "remote",
        shows_clients=not privacy.hides_sampling,
    )


def _retrying(grid: Grid, strategy: FederatedLoRA, config: Config) -> RetryGrid:
    def count_lost_attempt(node: int) -> None:
        strategy.round.lost_attempts[node] += 1

    federation = config.federation
    return RetryGrid(
        grid,
        strategy.full_request,
        federation.retries,
        federation.retry_after_s,
        on_lost=count_lost_attempt,
        logs=not config.privacy.hides_sampling,
    )


def _run_rounds(
    strategy: FederatedLoRA, grid: Grid, config: Config, adapter: Adapter, callback: RoundEndCallback
) -> None:
    with suppress(StoppedEarly):
        strategy.start(
            grid,
            payload.pack(adapter, ["A", "B"]),
            num_rounds=config.train.rounds - strategy.first_round,
            timeout=config.federation.round_timeout_s,
            evaluate_fn=callback,
        )


def _report_end(
    config: Config, reporter: Reporter, callback: RoundEndCallback, best: BestRound | None
) -> EarlyStop | None:
    """Print what the run has reached and spent; return why rounds were left out, if any were."""
    document = privacy_document(config, callback.history, callback.clients)
    line = privacy_line(claim_of(config, callback.history, callback.clients))
    # The clients in the document are those that were sampled.
    clients = {} if config.privacy.hides_sampling else document["clients"]
    reporter.finished([outgoing_row(row, config) for row in callback.history], clients, line)
    stopped = early_stop_of(config, callback.history)
    for note in (str(stopped or ""), f"adapter-best/: {best}" if best else ""):
        if note:
            reporter.note(note)
    return stopped


def _write_result(
    config: Config, folder: RunFolder, strategy: FederatedLoRA, history: Sequence[Mapping[str, Any]]
) -> BestRound | None:
    """Write the adapters, the final one last, and the plots; return the best round, if its adapter is kept."""
    best = write_best_adapter(config, folder, history, strategy.adapter)
    peft_model.save_pretrained(load_model(config), strategy.adapter, folder.adapter)
    if config.plots:
        plot_accuracy(history, folder.accuracy_plot, flatten(as_dict(config)))
        plot_diagnostics(history, folder.diagnostics_plot)
    return best


def _write_inputs(config: Config, folder: RunFolder) -> None:
    """Write what the run starts from: configuration, classes, standardization, and simulated clients' data."""
    write_text(folder.config, to_yaml(config))
    write_json(folder.classes, class_names(config))
    save_standardization(load_model(config), folder.standardization)
    if config.data.name != "node":
        write_json(folder.partitions, describe_partitions(config))
        if config.plots:
            plot_partitions(partition_counts(config), folder.partitions_plot, counted_unit(config.model.task))

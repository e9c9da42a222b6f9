"""The Flower ServerApp: compose, build the method and the strategy, start, and leave a run folder behind."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsvd.config import Config
from fedsvd.config.compose import from_run_config, to_yaml
from fedsvd.lora import peft_model
from fedsvd.methods import build_method
from fedsvd.privacy.noise_share import ASSUMPTIONS
from fedsvd.report.diagnostics_plot import plot_diagnostics
from fedsvd.report.plots import plot_accuracy, plot_partitions
from fedsvd.report.progress import Reporter
from fedsvd.runs.folder import RunFolder, run_root, write_json, write_text
from fedsvd.runs.record import record_run
from fedsvd.runtime.data import class_names, partition_counts
from fedsvd.runtime.description import describe_partitions, describe_run
from fedsvd.runtime.model import initial_adapter, load_model, resolve_device
from fedsvd.tracking import tracked
from fedsvd.wire import payload
from server.checkpoint import load_latest
from server.client_level import ClientLevelServer
from server.evaluation import RoundEndCallback
from server.polling_grid import PollingGrid
from server.retry_grid import RetryGrid
from server.secure_grid import SecureGrid
from server.strategy import FederatedLoRA

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run's overrides describe."""
    config = from_run_config(context.run_config)
    folder = RunFolder(run_root(config.run_dir, context.run_id))
    with record_run(folder, describe_run(config), resumed=config.resume is not None):
        serve(grid, config, folder)


def serve(grid: Grid, config: Config, folder: RunFolder) -> None:
    """Build everything, start, and leave adapter and plots behind."""
    method = build_method(config.method)
    adapter = initial_adapter(config, method)
    earlier = load_latest(folder.checkpoints, adapter) if config.resume else None
    write_text(folder.config, to_yaml(config))
    write_json(folder.classes, class_names(config))
    if config.data.name != "node":
        write_json(folder.partitions, describe_partitions(config))
        if config.plots:
            plot_partitions(partition_counts(config), folder.partitions_plot)
    device = resolve_device(config.device)
    adapter = (earlier.adapter if earlier else adapter).to(device)
    state = {k: {n: t.to(device) for n, t in named.items()} for k, named in earlier.state.items()} if earlier else {}
    client_level = ClientLevelServer(config, folder.server_ledger) if config.privacy.name == "client_level" else None
    first_round = earlier.server_round if earlier else 0
    assumptions = ASSUMPTIONS if config.privacy.noise_share else ()
    federation = config.federation
    unit, hidden = "client" if client_level else "example", federation.secure_aggregation
    with (
        Reporter(folder.root, config.train.num_rounds, config.privacy.target_delta, unit, assumptions) as reporter,
        tracked(config, folder, reporter.warn) as track,
    ):
        polling: Grid = PollingGrid(grid, reporter.reply_arrived)
        secure = SecureGrid(polling, federation.min_survivors, PollingGrid(grid)) if hidden else None
        weights = peft_model.frozen_weights(load_model(config))
        strategy = FederatedLoRA(method, config, adapter, first_round, client_level, secure, state, weights)
        keeper = RoundEndCallback(config, folder, strategy, reporter, track, earlier)
        reporter.started(strategy.first_round, federation.clients_per_round or federation.num_clients)
        strategy.start(
            secure or RetryGrid(polling, strategy.in_full, federation.retries, federation.retry_after_s),
            payload.pack(adapter, ["A", "B"]),
            num_rounds=config.train.num_rounds - strategy.first_round,
            timeout=federation.round_timeout_s,
            evaluate_fn=keeper,
        )
        keeper.finish()
        peft_model.save_pretrained(load_model(config), strategy.adapter, folder.adapter)
        if config.plots:
            plot_accuracy(keeper.history, folder.accuracy_plot)
            plot_diagnostics(keeper.history, folder.diagnostics_plot)
    reporter.finished(keeper.history, keeper.clients)

"""Measure time and memory by number of clients, for the server alone and for complete runs in one process.

"server": the real strategy on the in-process grid. The clients do not train; all of them send random factors with the
shapes of a large model in each round. Measured with the mean, which stores no replies, and with the median, which must
store them. "run": `fedsvd train` with a tiny model on real text with DP-SGD, 50 clients per round, or all if there are
fewer. Each measurement runs in its own process. Memory is the peak resident memory of the process, at the end and
before the first round. Time is the median and range over the rounds after the first.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_report import add_bench, add_json_option, print_machine, write_json
from rich.console import Console
from rich.table import Table

CLIENTS = (10, 100, 1000)
CLIENTS_PER_ROUND = 50
ROUNDS = 4
# A tiny model, and enough texts for a thousand clients.
BASE_OVERRIDES = ("experiment=smoke", "data.max_train_examples=4000", "partition.min_partition_size=1")


@dataclass(frozen=True)
class ScaleResult:
    case: str
    clients: int
    clients_per_round: int
    start_s: float
    rounds_s: list[float]
    start_mib: float

    peak_mib: float


def add_parser(benches: Any) -> None:
    parser = add_bench(benches, "scale", "time and memory by clients", __doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--federation", choices=("local", "simulation"), nargs="*", default=["local"])
    add_json_option(parser)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.measure:
        print(json.dumps(asdict(measure(*arguments.measure.split(",")))))
        return
    machine = print_machine(Console(width=120))
    cases = ["server, mean", "server, median", *(f"run, {name}" for name in arguments.federation)]
    results = []
    for case in cases:
        for clients in arguments.clients:
            script = Path(__file__).with_name("bench_cli.py")
            options = ["scale", "--measure", f"{case},{clients}"]
            done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            results.append(ScaleResult(**json.loads(done.stdout.splitlines()[-1])))
            Console(stderr=True).print(results[-1])
    Console(width=120).print(table(results))
    write_json(arguments.json, {"machine": machine, "results": [asdict(row) for row in results]})


def table(results: list[ScaleResult]) -> Table:
    grid = Table(title=f"{os.cpu_count()} CPU cores; rounds 2 to {ROUNDS} timed")
    headings = ("case", "clients", "clients/round", "s to start", "s/round", "min … max", "MiB at start", "peak MiB")
    for heading in headings:
        grid.add_column(heading, justify="left" if heading == "case" else "right")
    for row in results:
        grid.add_row(
            row.case, f"{row.clients:,}", f"{row.clients_per_round:,}", f"{row.start_s:.1f}",
            f"{statistics.median(row.rounds_s):.2f}", f"{min(row.rounds_s):.2f} … {max(row.rounds_s):.2f}",
            f"{row.start_mib:,.0f}", f"{row.peak_mib:,.0f}",
        )  # fmt: skip
    return grid


def measure(kind: str, variant: str, clients: str) -> ScaleResult:
    """Run one measurement: of the server with this aggregation, or of a run with this federation."""
    measurement = measure_server if kind == "server" else measure_run
    return measurement(variant.strip(), int(clients))


def peak_mib() -> float:
    """Return the peak resident memory of this process in MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_server(aggregation: str, clients: int) -> ScaleResult:
    import numpy as np
    from answering_app import answering_app
    from bench_adapters import SHAPES, zero_adapter
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    from fedsvd.config.compose import compose
    from fedsvd.launch.in_process import InProcessGrid
    from fedsvd.lora.initialization import initialize_factors
    from fedsvd.methods import build_method
    from fedsvd.wire import train_messages
    from server.polling_grid import PollingGrid
    from server.strategy import FederatedLoRA

    sites, rank = SHAPES["roberta-large"]
    overrides = [*BASE_OVERRIDES, "privacy=none", "train.head=frozen", f"aggregation={aggregation}"]
    config = compose([*overrides, f"federation.num_clients={clients}"])
    adapter = initialize_factors(zero_adapter(sites, rank), init_a="orthonormal", init_b="zeros", seed=0)
    size = sum(B.numel() for B in adapter.B.values())

    def train(partition_id: int, task: train_messages.TrainTask, received: ArrayRecord) -> RecordDict:
        values = np.random.default_rng(partition_id).standard_normal(size, dtype=np.float32)
        report = train_messages.ClientReport(partition_id, 100, 0.0, server_round=task.server_round)
        return train_messages.train_reply(report, ArrayRecord({"B": Array(values)}))

    started = time.perf_counter()
    strategy = FederatedLoRA(build_method(config.method), config, adapter)
    grid = PollingGrid(InProcessGrid(answering_app(train), clients, {}))
    strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    start, start_mib = time.perf_counter() - started, peak_mib()
    seconds = []
    for server_round in range(1, ROUNDS + 1):
        started = time.perf_counter()
        messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
        strategy.aggregate_train(server_round, grid.send_and_receive(messages))
        seconds.append(time.perf_counter() - started)
        assert len(strategy.round.reports) == clients, strategy.round.refused
    return ScaleResult(f"server, {aggregation}", clients, clients, start, seconds[1:], start_mib, peak_mib())


def measure_run(federation: str, clients: int) -> ScaleResult:
    from fedsvd.cli import main
    from fedsvd.runs.folder import read_rows

    clients_per_round = min(clients, CLIENTS_PER_ROUND)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [

            *BASE_OVERRIDES, "partition=iid",
            f"federation={federation}", f"federation.num_clients={clients}",
            f"federation.clients_per_round={clients_per_round}",
            "privacy.accountant=rdp", "privacy.noise_multiplier=1", "privacy.target_epsilon=100",
            "train.local_steps=1", f"train.num_rounds={ROUNDS}", f"hydra.run.dir={folder}",
        ]  # fmt: skip
        started = time.perf_counter()
        if main(["train", *overrides]):
            raise SystemExit("the run failed")
        total = time.perf_counter() - started
        rows = read_rows(Path(folder) / "metrics.jsonl")
    assert all(row["clients_used"] == clients_per_round for row in rows[1:]), rows
    seconds = [sum(row[key] for key in row if key.startswith("seconds")) for row in rows]
    return ScaleResult(
        f"run, {federation}", clients, clients_per_round, total - sum(seconds), seconds[2:], 0.0, peak_mib()
    )

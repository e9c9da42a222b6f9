"""Time and memory against the number of clients: of the server alone, and of whole runs in one process.

"server": the real strategy on the in-process grid, with clients that train nothing and send random factors of a large
model's shapes; all of them in each round. Beside the mean, which keeps no reply, stands the median, which must. "run":
`fedsvd train` with a tiny model on real text under DP-SGD, 50 clients a round (all, where there are fewer). Each line
is a process of its own; memory is the most that the process ever held, and what it had held when the rounds began. Time
is the median of the rounds after the first, and their range.
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

from bench_report import add_json_option, tell_machine, write_json
from rich.console import Console
from rich.table import Table

CLIENTS = (10, 100, 1000)
A_ROUND = 50
ROUNDS = 4
# A tiny model, and texts for a thousand clients.
ENOUGH = ("experiment=smoke", "data.max_train_examples=4000", "partition.min_partition_size=1")


@dataclass(frozen=True)
class EvaluationResult:
    what: str
    clients: int
    a_round: int
    start_s: float
    rounds_s: list[float]
    before_mib: float
    peak_mib: float


def add_parser(benches: Any) -> None:
    parser = benches.add_parser(
        "scale", help="time and memory by clients", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--federation", choices=("local", "simulation"), nargs="*", default=["local"])
    add_json_option(parser)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.one:
        print(json.dumps(asdict(measure(*arguments.one.split(",")))))
        return
    machine = tell_machine(Console(width=120))
    whats = ["server, mean", "server, median", *(f"run, {name}" for name in arguments.federation)]
    found = []
    for what in whats:
        for clients in arguments.clients:
            script = Path(__file__).with_name("bench_cli.py")
            one = ["scale", "--one", f"{what},{clients}"]
            done = subprocess.run([sys.executable, str(script), *one], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found.append(EvaluationResult(**json.loads(done.stdout.splitlines()[-1])))
            Console(stderr=True).print(found[-1])
    Console(width=120).print(table(found))
    write_json(arguments.json, {"machine": machine, "results": [asdict(row) for row in found]})


def table(found: list[EvaluationResult]) -> Table:
    grid = Table(title=f"{os.cpu_count()} CPU cores; rounds 2 to {ROUNDS} timed")
    for head in ("what", "clients", "a round", "s to start", "s a round", "min … max", "MiB before", "MiB at most"):
        grid.add_column(head, justify="left" if head == "what" else "right")
    for row in found:
        grid.add_row(
            row.what, f"{row.clients:,}", f"{row.a_round:,}", f"{row.start_s:.1f}",
            f"{statistics.median(row.rounds_s):.2f}", f"{min(row.rounds_s):.2f} … {max(row.rounds_s):.2f}",
            f"{row.before_mib:,.0f}", f"{row.peak_mib:,.0f}",
        )  # fmt: skip
    return grid


def measure(kind: str, what: str, clients: str) -> EvaluationResult:
    number, what = int(clients), what.strip()
    if kind == "server":
        return measure_server(what, number)
    return measure_run(what, number)


def peak_mib(who: int = resource.RUSAGE_SELF) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def measure_server(aggregation: str, clients: int) -> EvaluationResult:
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
    words = [*ENOUGH, "privacy=none", "train.head=frozen", f"aggregation={aggregation}"]
    config = compose([*words, f"federation.num_clients={clients}"])
    adapter = initialize_factors(zero_adapter(sites, rank), init_a="orthonormal", init_b="zeros", seed=0)
    numbers = sum(B.numel() for B in adapter.B.values())

    def train(partition_id: int, task: train_messages.TrainTask, received: ArrayRecord) -> RecordDict:
        values = np.random.default_rng(partition_id).standard_normal(numbers, dtype=np.float32)
        report = train_messages.ClientReport(partition_id, 100, 0.0, server_round=task.server_round)
        return train_messages.train_reply(report, ArrayRecord({"B": Array(values)}))

    started = time.perf_counter()
    strategy = FederatedLoRA(build_method(config.method), config, adapter)
    grid = PollingGrid(InProcessGrid(answering_app(train), clients, {}))
    strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    start, before = time.perf_counter() - started, peak_mib()
    seconds = []
    for server_round in range(1, ROUNDS + 1):
        started = time.perf_counter()
        messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
        strategy.aggregate_train(server_round, grid.send_and_receive(messages))
        seconds.append(time.perf_counter() - started)
        assert len(strategy.round.reports) == clients, strategy.round.refused
    return EvaluationResult(f"server, {aggregation}", clients, clients, start, seconds[1:], before, peak_mib())


def measure_run(federation: str, clients: int) -> EvaluationResult:
    from fedsvd.cli import main
    from fedsvd.runs.folder import read_rows

    a_round = min(clients, A_ROUND)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *ENOUGH, "partition=iid",
            f"federation={federation}", f"federation.num_clients={clients}", f"federation.clients_per_round={a_round}",
            "privacy.accountant=rdp", "privacy.noise_multiplier=1", "privacy.target_epsilon=100",
            "train.local_steps=1", f"train.num_rounds={ROUNDS}", f"hydra.run.dir={folder}",
        ]  # fmt: skip
        started = time.perf_counter()
        if main(["train", *words]):
            raise SystemExit("the run failed")
        whole = time.perf_counter() - started
        rows = read_rows(Path(folder) / "metrics.jsonl")
    assert all(row["clients_used"] == a_round for row in rows[1:]), rows
    spent = [sum(row[key] for key in row if key.startswith("seconds")) for row in rows]
    return EvaluationResult(f"run, {federation}", clients, a_round, whole - sum(spent), spent[2:], 0.0, peak_mib())

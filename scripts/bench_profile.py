"""Where the time of a private round goes: the operators of one round by torch's profiler.

A round with the given overrides runs twice to fill the caches, then once under the profiler. "waits" are the calls that
make the CPU wait for a GPU. By default: B of query and value in the top layer of MiniLM, 2,000 examples on one client.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_report import add_bench, add_json_option, print_machine, write_json
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import fedsvd

DEFAULTS = (
    "experiment=demo", "train.head_rounds=0", "train.num_rounds=1", "train.eval_every=2", "plots=false",
    "partition=iid", "data.max_train_examples=2000", "data.max_test_examples=10", "federation.num_clients=1",
)  # fmt: skip
WAITS = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize", "Memcpy DtoH")


def add_parser(benches: Any) -> None:
    parser = add_bench(benches, "profile", "operators of a private round", __doc__)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for fedsvd train")
    parser.add_argument("--rows", type=int, default=10, help="number of operators (default 10)")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    console = Console(width=100)
    machine = print_machine(console)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(2):
            train(arguments.overrides, folder / str(number))
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        with profile(activities=activities) as profiler:
            seconds = train(arguments.overrides, folder / "profiled")
    events = profiler.key_averages()
    rows = sorted(events, key=own_time, reverse=True)[: arguments.rows]
    total = sum(map(own_time, events))
    grid = Table("operator", "share of time", "calls")
    for event in rows:
        grid.add_row(event.key, f"{own_time(event) / total:.1%}", f"{event.count:,}")
    waits = {event.key: event.count for event in events if event.key.startswith(WAITS)}
    console.print(grid, f"training of the round: {seconds:.2f} s", f"waits: {waits}", highlight=False)
    operators = {event.key: {"share": own_time(event) / total, "calls": event.count} for event in rows}
    write_json(arguments.json, {"machine": machine, "seconds": seconds, "operators": operators, "waits": waits})


def own_time(event: Any) -> float:
    """Return an operator's own time on the GPU, or on the CPU if there is none."""
    if not torch.cuda.is_available():
        return float(event.self_cpu_time_total)
    # The time of a kernel is also in the row of the operator that started it, which has a row of its own on the CPU.
    return float(event.self_device_time_total) if event.device_type == DeviceType.CUDA else 0.0


def train(overrides: list[str], folder: Path) -> float:
    """Return the seconds of the round's training."""
    given = {override.split("=")[0] for override in overrides}
    defaults = [item for item in DEFAULTS if item.split("=")[0] not in given]
    run = fedsvd.train(*defaults, *overrides, f"run_dir={folder}")
    return float(run.metrics[-1]["seconds_train"])

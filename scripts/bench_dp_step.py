"""Compare a DP-SGD step on LoRA's B with a non-private step of PEFT training.

A step is forward, backward, clipping, noise (ChaCha20) and SGD on one batch. Each repeat runs every mode once. A ratio
is the median over repeats of a mode's time divided by that of the non-private step in the same repeat; "ratio of
minima" compares the fastest repeats, which a busy machine affects the least. Memory is the peak of allocated memory
that two steps add to a loaded model, each mode in its own process (Linux only).
"""

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench_allocated import STATUS, allocated_mib, sample_allocated
from bench_dp_modes import MODES, SHAPES, build, modes
from bench_report import add_bench, add_json_option, print_machine, write_json
from rich.console import Console
from rich.table import Table

NON_PRIVATE = next(iter(MODES))


@dataclass(frozen=True)
class Result:
    shape: str
    mode: str
    repeats: int
    median_s: float
    ratio: float
    ratio_min: float
    ratio_max: float
    ratio_of_fastest: float
    memory_mib: float | None


def add_parser(benches: Any) -> None:
    parser = add_bench(benches, "dp_step", "time and memory of a private step", __doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=7, help="repeats of every mode (default 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    parser.add_argument("--precision", choices=["highest", "high", "medium"], default="medium")
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="eager")
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    add_json_option(parser)
    parser.add_argument("--memory-of", nargs=2, metavar=("SHAPE", "MODE"), help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.repeats < 1 or arguments.threads < 1:
        sys.exit("--repeats and --threads must be at least 1")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision(arguments.precision)
    if arguments.memory_of:
        print(peak_memory(*arguments.memory_of, arguments.attention))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    setting = f"matmul precision {arguments.precision}, {arguments.attention} attention"
    machine = print_machine(console, setting=setting)
    results: list[Result] = []
    for key in arguments.shapes:
        measured = measure(key, arguments)
        console.print(table(SHAPES[key].title, measured))
        results += measured
    write_json(arguments.json, {"machine": machine, "results": [asdict(result) for result in results]})


def measure(key: str, arguments: argparse.Namespace) -> list[Result]:
    bench = build(key, arguments.attention)
    seconds: dict[str, list[float]] = {name: [] for name in modes(key)}
    for repeat in range(arguments.repeats + 1):
        for name in seconds:
            start = time.perf_counter()
            MODES[name](bench)
            # The first repeat is a warm-up and fills the prefix cache.
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    del bench
    results = []
    for name, runs in seconds.items():
        ratios = [run / baseline for run, baseline in zip(runs, seconds[NON_PRIVATE], strict=True)]
        memory = None if arguments.no_memory or not STATUS.exists() else measure_memory(key, name, arguments)
        fastest = min(runs) / min(seconds[NON_PRIVATE])
        medians = statistics.median(runs), statistics.median(ratios)
        results.append(Result(key, name, len(runs), *medians, min(ratios), max(ratios), fastest, memory))
    return results


def measure_memory(key: str, mode: str, arguments: argparse.Namespace) -> float:
    options = ["--memory-of", key, mode, "--threads", str(arguments.threads)]
    options += ["--precision", arguments.precision, "--attention", arguments.attention]
    command = [sys.executable, str(Path(__file__).with_name("bench_cli.py")), "dp_step", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def peak_memory(key: str, mode: str, attention: str) -> float:
    """Return the MiB that two steps allocate at most, in a process with the model loaded."""
    bench = build(key, attention)
    before = allocated_mib()
    with sample_allocated() as samples:
        for _ in range(2):
            MODES[mode](bench)
    return max(samples) - before


def table(title: str, results: list[Result]) -> Table:
    grid = Table(title=title)
    grid.add_column("mode")
    for heading in ("median ms", "x non-private", "min … max", "ratio of minima", "peak MiB"):
        grid.add_column(heading, justify="right")
    for result in results:
        grid.add_row(
            result.mode,
            f"{result.median_s * 1e3:,.0f}",
            f"{result.ratio:.2f}",
            f"{result.ratio_min:.2f} … {result.ratio_max:.2f}",
            f"{result.ratio_of_fastest:.2f}",
            "" if result.memory_mib is None else f"{result.memory_mib:,.0f}",
        )
    return grid

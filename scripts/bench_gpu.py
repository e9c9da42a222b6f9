"""Everything that a GPU decides, in one command: paste its output into docs/benchmarks.md.

Without a CUDA device, or with --small, the same code runs at small shapes on the CPU, which tests the script and
measures nothing. A private step is forward, backward, clipping, noise and SGD. A ratio is the median over repeats of
the time divided by that of the first row of its shape in the same repeat; of a federation, that of the accuracies.
"of peak" is the rate of the model's products (4 operations per frozen weight and token: forward, and backward to the
inputs) as a share of a large product's in bfloat16 on the same device.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_dp_modes import Bench, ghost_step, non_private_step, private_step
from bench_llama import MODELS, SMALL_MODELS, Shape, build, linear_weights
from bench_report import add_bench, add_json_option, print_machine, write_json
from rich.console import Console
from rich.table import Table

from fedsvd.lora.refactorize import orthonormal_rows, refactorize
from fedsvd.privacy.grad_sample_modes import opacus_hooks
from fedsvd.runs.folder import read_rows
from fedsvd.training.per_example_gradients import fused_gradients

SECTIONS = ("tests", "server", "step", "federation")
PLAIN = "plain PEFT"
STEPS: dict[str, Callable[[Bench], None]] = {
    PLAIN: non_private_step,
    "private, fused": lambda bench: private_step(bench, fused_gradients),
    "private, Opacus' hooks": lambda bench: private_step(bench, opacus_hooks),
    "private, Opacus' ghost clipping": ghost_step,
}
# Sites, d and rank of the server step.
SERVER = {"RoBERTa-large": (48, 1024, 8), "7B": (64, 4096, 16), "70B": (160, 8192, 16)}
SMALL_SERVER = {"small": (4, 64, 4)}


@dataclass(frozen=True)
class Result:
    section: str
    shape: str
    name: str
    median_s: float
    ratio: float
    spread: tuple[float, float]
    tokens_per_s: float | None = None
    memory_mib: float | None = None
    share_of_peak: float | None = None


def add_parser(benches: Any) -> None:
    parser = add_bench(benches, "gpu", "all figures from a card", __doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--small", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    # Opacus' hooks make torch warn that the input of the lowest adapted layer needs no gradient.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    small = arguments.small or not torch.cuda.is_available()
    device = torch.device("cpu" if small else "cuda")
    console = Console(width=None if sys.stdout.isatty() else 120)
    if small:
        console.print("small shapes on the CPU: this tests the script, the figures mean nothing")
    machine = print_machine(console, cuda=str(torch.version.cuda))
    results: list[Result] = []
    if "tests" in arguments.only:
        run_tests(console, small)
    if "server" in arguments.only:
        results += server_steps(SMALL_SERVER if small else SERVER, device, arguments.repeats)
    if "step" in arguments.only:
        results += private_steps(SMALL_MODELS if small else MODELS, device, arguments.repeats)
    if "federation" in arguments.only:
        results += federations(small)
    console.print(table(results))
    write_json(arguments.json, {"machine": machine, "results": [asdict(result) for result in results]})


def run_tests(console: Console, small: bool) -> None:
    """Run the tests that need a GPU; without one, count them."""
    options = ["--collect-only"] if small else []
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/unit", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    console.print(f"tests marked gpu: {done.stdout.strip().splitlines()[-1]}", highlight=False)


def server_steps(shapes: dict[str, tuple[int, int, int]], device: torch.device, repeats: int) -> Iterator[Result]:
    """Time FedSVD's server step against a copy of its factors and against a full SVD of each product."""
    for shape, (sites, d, rank) in shapes.items():
        B = torch.randn(sites, d, rank, device=device)
        A = orthonormal_rows(torch.randn(sites, rank, d, device=device))
        steps: dict[str, Callable[[], object]] = {
            "server step": partial(refactorize, B, A),
            "copy of both factors": partial(copy, B, A),
        }
        seconds = measure(steps, device, repeats)
        # One site, once after a warm-up: at 70B shapes all of them would take an hour.
        full = measure({"svd": partial(torch.linalg.svd, B[0] @ A[0], full_matrices=False)}, device, 1)
        seconds["full SVD of each site (scaled up from one)"] = [full["svd"][0] * sites] * repeats
        yield from results_of("server", shape, seconds, "server step")


def copy(B: torch.Tensor, A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return B.clone(), A.clone()


def private_steps(shapes: dict[str, Shape], device: torch.device, repeats: int) -> Iterator[Result]:
    """Time private steps against plain ones, in bfloat16 and on a base in nf4."""
    peak = product_rate(device)
    for shape, size in shapes.items():
        for kind in ("bfloat16", "nf4"):
            if kind == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
                continue
            bench = build(size, kind, device)
            memory: dict[str, float] = {}
            seconds = measure({n: partial(step, bench) for n, step in STEPS.items()}, device, repeats, memory)
            results = results_of("step", f"{shape}, {kind}", seconds, PLAIN, size.batch * size.length, memory)
            for result in results:
                share = 4 * linear_weights(size) * (result.tokens_per_s or 0.0) / peak
                yield replace(result, share_of_peak=share)


def product_rate(device: torch.device) -> float:
    """Return the operations per second of a large product in bfloat16, the fastest of five."""
    size = 8192 if device.type == "cuda" else 512
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / min(measure({"product": lambda: x @ x}, device, 5)["product"])


def measure(
    steps: dict[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    memory: dict[str, float] | None = None,
) -> dict[str, list[float]]:
    """Run every step once per repeat, after a warm-up; also record the peak memory of a step in MiB, on a GPU."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
                if memory is not None:
                    memory[name] = torch.cuda.max_memory_allocated() / 2**20
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def results_of(
    section: str,
    shape: str,
    seconds: dict[str, list[float]],
    reference: str,
    tokens: int | None = None,
    memory: dict[str, float] | None = None,
) -> Iterator[Result]:
    for name, runs in seconds.items():
        ratios = [run / base for run, base in zip(runs, seconds[reference], strict=True)]
        median = statistics.median(runs)
        rate = tokens / median if tokens else None
        spread = min(ratios), max(ratios)
        yield Result(section, shape, name, median, statistics.median(ratios), spread, rate, (memory or {}).get(name))


def federations(small: bool) -> Iterator[Result]:
    """Run one federation on the GPU and on the CPU; the ratio is that of the held-out accuracy."""
    overrides = ["experiment=smoke"] if small else ["model=minilm", "train.num_rounds=3"]
    seconds, accuracies = dict[str, float](), dict[str, float]()
    for device in ("cpu",) if small else ("cpu", "cuda"):
        with tempfile.TemporaryDirectory() as folder:
            program = [sys.executable, "-m", "fedsvd.cli", "train", *overrides, "plots=false"]
            start = time.perf_counter()
            subprocess.run(
                [*program, f"device={device}", f"hydra.run.dir={folder}/run"], check=True, stdout=subprocess.DEVNULL
            )
            seconds[device] = time.perf_counter() - start
            accuracies[device] = read_rows(Path(folder) / "run" / "metrics.jsonl")[-1]["accuracy"]
    for device, value in accuracies.items():
        ratio = value / accuracies["cpu"]
        yield Result(
            "federation", " ".join(overrides), f"{device}, accuracy {value:.3f}", seconds[device], ratio, (ratio, ratio)
        )


def table(results: list[Result]) -> Table:
    grid = Table()
    for heading in ("section", "shape", "what", "median ms", "ratio", "min … max", "tokens/s", "peak MiB", "of peak"):
        grid.add_column(heading, justify="left" if heading in ("section", "shape", "what") else "right")
    for r in results:
        figures = [f"{r.median_s * 1e3:,.2f}", f"{r.ratio:,.2f}", f"{r.spread[0]:,.2f} … {r.spread[1]:,.2f}"]
        optional = ["" if value is None else f"{value:,.0f}" for value in (r.tokens_per_s, r.memory_mib)]
        share = "" if r.share_of_peak is None else f"{r.share_of_peak:.1%}"
        grid.add_row(r.section, r.shape, r.name, *figures, *optional, share)
    return grid

"""Peak memory of a private step and of a plain PEFT step on a 4-bit base of 7B shape, on the CPU (Linux only).

Every step runs in a process of its own, on a Llama-type model with random weights (32 layers of width 4096, nf4) and
LoRA of rank 16 on queries and values. The figure is the peak of allocated memory above that of the loaded model. It
needs bitsandbytes, 16 GiB of memory, and about ten minutes on two cores for each step.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from bench_allocated import allocated_mib, sample_allocated
from bench_gpu import PLAIN, STEPS
from bench_llama import MODELS, Shape, build
from bench_report import add_bench, add_json_option, print_machine, write_json
from rich.console import Console

PRIVATE = "private, fused"


def add_parser(benches: Any) -> None:
    parser = add_bench(benches, "memory", "memory of a private step at 7B shapes", __doc__)
    parser.add_argument("--layers", type=int, default=MODELS["7B"].layers)
    parser.add_argument("--batch", type=int, default=1, help="examples of a step (default 1)")
    parser.add_argument("--length", type=int, default=MODELS["7B"].length, help="tokens of an example (default 512)")
    parser.add_argument("--width", type=int, default=MODELS["7B"].width, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=[PLAIN, PRIVATE], help=argparse.SUPPRESS)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    heads = arguments.width // 128
    inner = MODELS["7B"].inner * arguments.width // MODELS["7B"].width
    shape = Shape(arguments.layers, arguments.width, heads, inner, arguments.batch, arguments.length)
    if arguments.step:
        print(json.dumps(measure(shape, arguments.step)))
        return
    console = Console()
    machine = print_machine(console)
    results = {}
    for step in (PLAIN, PRIVATE):
        program = [sys.executable, *sys.argv, "--step", step]
        output = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[step] = json.loads(output.splitlines()[-1])
        console.print(step, results[step], highlight=False)
    ratio = results[PRIVATE]["peak_mib"] / results[PLAIN]["peak_mib"]
    console.print(f"private / plain: {ratio:.2f}", highlight=False)
    write_json(arguments.json, {"machine": machine, "results": results, "ratio": ratio})


def measure(shape: Shape, step: str) -> dict[str, float]:
    """Return the loaded model's memory, the peak of a step above it, and its seconds."""
    bench = build(shape, "nf4", torch.device("cpu"))
    loaded = allocated_mib()
    start = time.perf_counter()
    with sample_allocated() as samples:
        STEPS[step](bench)
    seconds = time.perf_counter() - start
    return {"loaded_mib": loaded, "peak_mib": max(samples) - loaded, "seconds": round(seconds, 1)}

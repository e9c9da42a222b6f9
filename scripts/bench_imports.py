"""CPU time of the imports of a client process, relative to `import torch`.

Flower starts a process for each message, so every message pays for these imports. The processes alternate, so that a
busy machine slows all of them alike, and each figure is a median.
"""

import argparse
import os
import statistics
import subprocess
import sys
from typing import Any

from bench_report import add_bench, add_json_option, print_machine, write_json
from rich.console import Console
from rich.table import Table

# What the kinds of messages import: queries and most stages of a secure sum, a plain round, a private round.
PROGRAMS = {
    "torch": "import torch",
    "client.app": "import client.app",
    "plain round": "import client.app, client.local_round, transformers.models.bert.modeling_bert",
    "private round": "import client.app, client.local_round, transformers.models.bert.modeling_bert, opacus",
}


def add_parser(benches: Any) -> None:
    parser = add_bench(benches, "imports", "CPU time of imports", __doc__)
    parser.add_argument("--runs", type=int, default=5, help="processes of each kind")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(arguments.runs):
        for name, program in PROGRAMS.items():
            times[name].append(cpu_seconds(program))
    medians = {name: statistics.median(values) for name, values in times.items()}
    table = Table(title=f"CPU seconds (user + system), median of {arguments.runs} processes")
    for head in ("imports", "s", "x import torch"):
        table.add_column(head, justify="left" if head == "imports" else "right")
    for name, seconds in medians.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / medians['torch']:.2f}")
    console = Console()
    console.print(table)
    machine = print_machine(console)
    write_json(arguments.json, {**machine, "cpu_seconds": medians})


def cpu_seconds(program: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-c", program], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system

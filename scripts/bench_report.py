"""Description of the machine, and JSON output, for all benchmarks."""

import argparse
import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console


def describe_machine() -> dict[str, str]:
    """Return the command line, CPU, GPU and versions."""

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "command": shlex.join(["scripts/bench", *sys.argv[1:]]),
        "cpu": f"{cpu}, {platform.machine()}, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}",
    }


def add_bench(benches: Any, name: str, title: str, description: str | None) -> argparse.ArgumentParser:
    """Add the parser of one benchmark, with its module's docstring as it stands."""
    parser: argparse.ArgumentParser = benches.add_parser(
        name, help=title, description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    return parser


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --json FILE."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")


def print_machine(console: Console, **more: str) -> dict[str, str]:
    """Print the description of the machine with additional entries, and return it."""
    machine = describe_machine() | more
    console.print(*(f"{key}: {value}" for key, value in machine.items()), sep="\n", highlight=False)
    return machine


def write_json(path: Path | None, results: object) -> None:
    """Write results as JSON; do nothing if there is no path."""
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n")

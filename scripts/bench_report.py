"""What a benchmark says of its machine, and where its figures go."""

import argparse
import json
import platform
import shlex
import sys
from pathlib import Path

import torch
from rich.console import Console


def describe_machine() -> dict[str, str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "command": shlex.join(["scripts/bench", *sys.argv[1:]]),
        "cpu": f"{cpu}, {platform.machine()}, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}",
    }


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")


def tell_machine(console: Console, **more: str) -> dict[str, str]:
    """Print what the machine and the command are, and return it."""
    machine = describe_machine() | more
    console.print(*(f"{key}: {value}" for key, value in machine.items()), sep="\n", highlight=False)
    return machine


def write_json(path: Path | None, figures: object) -> None:
    if path:
        path.write_text(json.dumps(figures, indent=2) + "\n")

"""Try to break fedsvd: mutants of its code, fuzzed replies and inputs, killed processes, damaged ledgers.

Each part writes its figures to docs/robustness.json, from which `scripts/robustness table` makes the tables of
docs/robustness.md. All parts but `kills` and `table` need tools that the lock file does not have:

    .venv/bin/uv pip install --python .venv/bin/python -e ".[robustness]"
"""

import argparse
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import robustness_fuzz
import robustness_kills
import robustness_mutants
import robustness_table

Part = Callable[[argparse.Namespace, Path], dict[str, Any]]
FUZZED = {
    "replies": ("changed_contents", "changed_bytes"),
    "inputs": ("own_data_files", "overrides", "node_configurations", "node_configuration_texts", "damaged_ledgers"),
}
# A composition of overrides takes longer than the other checks.
FEWER = {"overrides": 2}


def mutants(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    groups = dict(robustness_table.read().get("mutants", {}).get("groups", {}))
    for name in arguments.group or robustness_mutants.GROUPS:
        earlier = {one["change"]: one["reason"] for one in groups.get(name, {}).get("survivors", [])}
        groups[name] = robustness_mutants.run_group(name, work, arguments.sample, earlier)
        robustness_table.write("mutants", {"groups": groups, "seed": robustness_mutants.SEED})
        print(f"{name}: {groups[name]['killed']} of {groups[name]['tried']} killed", flush=True)
    return {"groups": groups, "seed": robustness_mutants.SEED}


def fuzz(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    module, found = f"robustness_{arguments.part}", {}
    for check in FUZZED[arguments.part]:
        runs = arguments.runs // FEWER.get(check, 1)
        found[check] = robustness_fuzz.fuzz(module, check, runs, work)
        print(f"{check}: {found[check]['outcomes']}", *found[check]["faults"], sep="\n    ", flush=True)
    return {"checks": found, "seed": robustness_fuzz.SEED}


def kills(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    return {"killed": robustness_kills.kill_all(arguments.kills, work)}


def cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def run(function: Part, arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="robustness-") as temporary:
        figures = function(arguments, arguments.work or Path(temporary))
    robustness_table.write(arguments.part, figures | {"cpu_seconds": round(cpu_seconds())})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/robustness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="scratch directory to continue in (default: a new one)")
    parts = parser.add_subparsers(required=True, metavar="PART", dest="part")
    part = parts.add_parser("mutants", help="mutants of the code, and whether the unit tests notice")
    part.add_argument("group", nargs="*", choices=[[], *robustness_mutants.GROUPS], help="packages (default: all)")
    part.add_argument("--sample", type=int, help="mutants per package (default: see robustness_mutants.py)")
    part.set_defaults(run=lambda arguments: run(mutants, arguments))
    for name, runs in (("replies", 10_000), ("inputs", 5_000)):
        part = parts.add_parser(name, help=f"coverage-guided fuzzing of {name}")
        part.add_argument("--runs", type=int, default=runs, help=f"number of inputs per check (default: {runs})")
        part.set_defaults(run=lambda arguments: run(fuzz, arguments))
    part = parts.add_parser("kills", help="SIGKILL of clients and trainers that charge a ledger")
    part.add_argument("--kills", type=int, default=200, help="number of kills of each (default: 200)")
    part.set_defaults(run=lambda arguments: run(kills, arguments))
    part = parts.add_parser("table", help="make the tables of docs/robustness.md from docs/robustness.json")
    part.set_defaults(run=lambda arguments: robustness_table.update())
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

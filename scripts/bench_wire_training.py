"""Measure rounds that really train: in one process, on nodes with a trainer, and on nodes without one.

Used by ``scripts/bench wire --train``. For each number of nodes, two federations run side by side, one with
``trainer="none"``. Runs of the three kinds alternate, so that a change of the machine's speed affects all of them.
"""

import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loopback import Loopback
from rich.table import Table

from fedsvd.runs.folder import read_rows

PROCESS, TRAINER, NONE = "one process", "trainer", "no trainer"
NODE_SETTINGS = {TRAINER: "trainer-idle-s=120", NONE: 'trainer="none"'}
ADAPTER = "adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class TrainingResult:
    """Seconds of rounds as the server sees them: from the first message sent to the last reply.

    Attributes:
        kind: `PROCESS`, `TRAINER` or `NONE`.
        nodes: Number of nodes, all of which train in each round.
        first_s: Median of the first rounds.
        later_s: Median of all other rounds.
        min_s: Shortest of these.
        max_s: Longest of these.
        message_cpu_s: CPU seconds of a ClientApp process from its start to its end; None in one process.
    """

    kind: str
    nodes: int
    first_s: float
    later_s: float
    min_s: float
    max_s: float
    message_cpu_s: float | None


def measure(folder: Path, counts: list[int], texts: int, repeats: int, overrides: list[str]) -> list[TrainingResult]:
    """Run each kind of federation, alternating, for each number of nodes, with so many texts per node."""
    results = []
    for nodes in counts:
        seconds: dict[str, list[list[float]]] = {PROCESS: [], **{kind: [] for kind in NODE_SETTINGS}}
        with ExitStack() as stack:
            federations = {
                kind: stack.enter_context(
                    Loopback(
                        folder / f"{nodes}-{number}",
                        [f"partition-id={node} num-partitions={nodes} {setting}" for node in range(nodes)],
                    )
                )
                for number, (kind, setting) in enumerate(NODE_SETTINGS.items())
            }
            line = [*overrides, f"federation.num_clients={nodes}", f"data.max_train_examples={texts * nodes}"]
            for repeat in range(repeats):
                for kind, values in seconds.items():
                    run = folder / f"{nodes}-{kind.replace(' ', '-')}-{repeat}"
                    _run(run, line, federations.get(kind))
                    values.append([row["seconds_train"] for row in read_rows(run / "metrics.jsonl")[1:]])
            cpu = {kind: message_cpu_s(federation, nodes) for kind, federation in federations.items()}
        results += [_summarize(kind, nodes, values, cpu.get(kind)) for kind, values in seconds.items()]
    return results


def _run(run: Path, overrides: list[str], federation: Loopback | None) -> None:
    if federation is None:
        command = [sys.executable, "-m", "fedsvd.cli", "train", *overrides, f"hydra.run.dir={run}"]
        subprocess.run(command, check=True, capture_output=True)
    else:
        federation.train(run, *overrides)
        federation.wait((run / ADAPTER).exists, 3600, "the end of the run")


def _summarize(kind: str, nodes: int, seconds: list[list[float]], cpu: float | None) -> TrainingResult:
    later = [value for values in seconds for value in values[1:]]
    first = statistics.median(values[0] for values in seconds)
    return TrainingResult(kind, nodes, first, statistics.median(later), min(later), max(later), cpu)


def message_cpu_s(federation: Loopback, nodes: int) -> float:
    """Return the mean CPU seconds of the ClientApp processes that their executors have waited for."""
    supernodes = {federation.processes[f"node-{number}"].pid for number in range(nodes)}
    ticks = messages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"flower-superexec" in command and int(fields[1]) in supernodes:
            ticks += int(fields[13]) + int(fields[14])
    for number in range(nodes):
        # An executor waits for a process when it starts the next one.
        messages += federation.log(f"node-{number}").count("Start `flwr-clientapp` process") - 1
    return ticks / os.sysconf("SC_CLK_TCK") / max(messages, 1)


def table(results: list[TrainingResult]) -> Table:
    grid = Table(title="seconds per round, from the first message to the last reply")
    headings = ["nodes", "federation", "first round", "later rounds", "min … max", "/ one process", "CPU s a message"]
    for heading in headings:
        grid.add_column(heading, justify="left" if heading == "federation" else "right")
    baseline = {result.nodes: result.later_s for result in results if result.kind == PROCESS}
    for row in results:
        cpu = "" if row.message_cpu_s is None else f"{row.message_cpu_s:.1f}"
        grid.add_row(
            str(row.nodes), row.kind, f"{row.first_s:.1f}", f"{row.later_s:.1f}", f"{row.min_s:.1f} … {row.max_s:.1f}",
            f"{row.later_s / baseline[row.nodes]:.2f}", cpu,
        )  # fmt: skip
    return grid

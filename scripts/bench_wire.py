"""Measure the transport overhead of a round on real nodes, and its bytes.

Starts a SuperLink and SuperNodes as processes on the loopback interface; each message is handled by its own process, as
in a Flower deployment. The server sends and waits as fedsvd does (packed arrays, `server.polling_grid`); clients reply
with an update of the right size without training. A client's compute time is the time from the start of its process,
including Python startup and imports, until its reply is ready; a round's is that of its slowest client. The overhead is
the rest of the round: Flower's SuperNode polls for work every 3 s and its server-side grid polls for replies every 3 s,
whereas fedsvd's grid polls for replies every 0.05 to 0.5 s. Node counts, sizes and repeats are interleaved in one run.

With --train, clients train with DP-SGD instead, in one process, with a trainer per node, and with trainer="none".
"""

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_wire_training
from bench_report import add_bench, add_json_option, print_machine, write_json
from loopback import Loopback
from rich.console import Console
from rich.table import Table

# The two polling intervals of Flower's transport.
POLLING_S = 6.0
# (sites, d, rank) by model.
SHAPES = {"minilm": (12, 384, 8), "roberta-large": (48, 1024, 8)}
CLIENT = """
import os, time
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

def compute_time():
    ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    return float(open("/proc/uptime").read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")

@app.train()
def train(message, context):
    size = int(message.content.config_records["size"]["up"])
    factors = ArrayRecord({"B": Array(np.zeros(size, dtype=np.float32))})
    return Message(RecordDict({"factors": factors, "m": MetricRecord({"compute": compute_time()})}), reply_to=message)
"""
SERVER = """
import json, os, time
import numpy as np, torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
from fedsvd.wire import payload
from server.polling_grid import PollingGrid

app = ServerApp()

@app.main()
def main(grid, context):
    plan = json.load(open(context.run_config["plan"]))
    polling = PollingGrid(grid)
    num_nodes = max(spec["nodes"] for spec in plan["rounds"])
    while len(nodes := sorted(grid.get_node_ids())) < num_nodes:
        time.sleep(0.2)
    rows = []
    for number, spec in enumerate(plan["rounds"]):
        sites, d, r = spec["shape"]
        B = {f"s{k}": torch.randn(d, r) for k in range(sites)}
        rotation = {f"s{k}": torch.randn(r, r, dtype=torch.float64) for k in range(sites)}
        array = Array(np.concatenate([b.numpy().reshape(-1) for b in B.values()]))
        sent = ArrayRecord({"B": array, "A.rotation": payload.pack_sites(rotation, np.float64)})
        size = ConfigRecord({"up": sites * d * r})
        messages = [Message(RecordDict({"f": sent, "size": size}), node, "train", group_id=str(number), ttl=300.0)
                    for node in nodes[: spec["nodes"]]]
        started = time.perf_counter()
        replies = list(polling.send_and_receive(messages, timeout=300))
        wall = time.perf_counter() - started
        compute = max(reply.content["m"]["compute"] for reply in replies)
        up = sum(payload.payload_bytes(reply.content["factors"]) for reply in replies)
        down = len(replies) * payload.payload_bytes(sent)
        rows.append({**spec, "wall": wall, "compute": compute, "down": down, "up": up})
        with open(plan["out"] + ".tmp", "w") as stream:
            stream.write(json.dumps(rows))
    os.replace(plan["out"] + ".tmp", plan["out"])
"""
PROJECT = """
[project]
name = "wire"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "fedsvd"
fab-include = ["*.py"]
[tool.flwr.app.components]
serverapp = "wire_server:app"
clientapp = "wire_client:app"
[tool.flwr.app.config]
plan = ""
"""


@dataclass(frozen=True)
class WireResult:
    shape: str
    nodes: int
    overhead_s: float
    min_s: float
    max_s: float
    compute_s: float
    down: int
    up: int
    expected_down: int
    expected_up: int


def add_parser(benches: Any) -> None:
    parser = add_bench(benches, "wire", "overhead of a round on real nodes", __doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train", action="store_true", help="measure rounds that train, and not transport alone")
    parser.add_argument("--model", default="minilm", help="with --train: the model")
    parser.add_argument("--texts", type=int, default=1000, help="with --train: number of texts per client")
    parser.add_argument("--rounds", type=int, default=4, help="with --train: rounds per run")
    parser.add_argument("overrides", nargs="*", help="with --train: further settings, KEY=VALUE")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.train:
        run_training(arguments)
    else:
        run_transport(arguments)


def run_training(arguments: argparse.Namespace) -> None:
    overrides = [
        f"model={arguments.model}", "partition=iid", "data.max_test_examples=100", "train.local_steps=2",
        f"train.num_rounds={arguments.rounds}", "privacy.noise_multiplier=1", "privacy.accountant=rdp",
        "privacy.target_epsilon=1000", "plots=false", *arguments.overrides,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        nodes, texts, repeats = arguments.nodes, arguments.texts, arguments.repeats
        results = bench_wire_training.measure(Path(folder), nodes, texts, repeats, overrides)
    console = Console(width=140)
    machine = print_machine(console)
    console.print(bench_wire_training.table(results))
    write_json(arguments.json, {"machine": machine, "results": [asdict(row) for row in results]})


def run_transport(arguments: argparse.Namespace) -> None:
    rounds = [
        {"nodes": nodes, "name": shape, "shape": SHAPES[shape]}
        for _ in range(arguments.repeats)
        for shape in arguments.shapes
        for nodes in arguments.nodes
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows = run_on_nodes(Path(folder), max(arguments.nodes), rounds)
    results = [summarize(rows, shape, nodes) for shape in arguments.shapes for nodes in arguments.nodes]
    console = Console(width=140)
    machine = print_machine(console)
    console.print(table(results))
    write_json(arguments.json, {"machine": machine, "results": [asdict(row) for row in results]})


def summarize(rows: list[dict[str, Any]], shape: str, nodes: int) -> WireResult:
    selected = [row for row in rows if (row["name"], row["nodes"]) == (shape, nodes)]
    overhead = [row["wall"] - row["compute"] for row in selected]
    sites, d, r = SHAPES[shape]
    down, up = 4 * sites * (r * d + 2 * r * r) * nodes, 4 * sites * r * d * nodes
    return WireResult(
        shape,
        nodes,
        overhead_s=statistics.median(overhead),
        min_s=min(overhead),
        max_s=max(overhead),
        compute_s=statistics.median(row["compute"] for row in selected),
        down=selected[0]["down"],
        up=selected[0]["up"],
        expected_down=down,
        expected_up=up,
    )


def table(results: list[WireResult]) -> Table:
    grid = Table(title=f"{os.cpu_count()} CPU cores; polling intervals of Flower's transport: {POLLING_S:g} s in total")
    headings = ["adapter", "nodes", "overhead, s", "min … max", "/ polling", "compute, s"]
    for heading in (*headings, "bytes down", "/ formula", "bytes up", "/ formula"):
        grid.add_column(heading, justify="left" if heading == "adapter" else "right")
    for row in results:
        grid.add_row(
            row.shape, str(row.nodes), f"{row.overhead_s:.1f}", f"{row.min_s:.1f} … {row.max_s:.1f}",
            f"{row.overhead_s / POLLING_S:.2f}", f"{row.compute_s:.1f}", f"{row.down:,}",
            f"{row.down / row.expected_down:.3f}", f"{row.up:,}", f"{row.up / row.expected_up:.3f}",
        )  # fmt: skip
    return grid


def run_on_nodes(folder: Path, count: int, rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the rounds on this many SuperNodes and return one row per round."""
    app, out = folder / "app", folder / "results.json"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "wire_client.py").write_text(CLIENT)
    (app / "wire_server.py").write_text(SERVER)
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"rounds": rounds, "out": str(out)}))
    with Loopback(folder / "flower", [""] * count) as nodes:
        nodes.submit(app, f'plan="{plan}"')
        nodes.wait(out.exists, 3600, "the results")
    rows: list[dict[str, Any]] = json.loads(out.read_text())
    return rows

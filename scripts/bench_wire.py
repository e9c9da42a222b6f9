"""Seconds that a round on real nodes takes beyond the clients' own work, and its bytes against the formula.

One SuperLink and as many SuperNodes as asked for, real processes on loopback, each message in a process of its own, as
Flower deploys them. The server sends and waits as fedsvd does (packed arrays, `server.polling_grid`); clients answer
with an update of the right size and train nothing. A client's own work is the time from the start of its process,
Python and Flower's imports included, until its answer is ready; a round's is that of its slowest client. What is left
is the transport: Flower's SuperNode sleeps 3 s between two looks for work, and its server's grid as much between two
looks for answers, where fedsvd's looks every 0.05 to 0.5 s. Nodes, sizes and repeats take turns in one run.
"""

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_report import add_json_option, tell_machine, write_json
from loopback import Loopback
from rich.console import Console
from rich.table import Table

SLEEPS_S = 6.0
SHAPES = {"minilm": (12, 384, 8), "roberta-large": (48, 1024, 8)}
CLIENT = """
import os, time
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

def own_work():
    ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    return float(open("/proc/uptime").read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")

@app.train()
def train(message, context):
    size = int(message.content.config_records["size"]["up"])
    factors = ArrayRecord({"B": Array(np.zeros(size, dtype=np.float32))})
    return Message(RecordDict({"factors": factors, "m": MetricRecord({"own": own_work()})}), reply_to=message)
"""
SERVER = """
import json, time
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
    most = max(turn["nodes"] for turn in plan["turns"])
    while len(nodes := sorted(grid.get_node_ids())) < most:
        time.sleep(0.2)
    found = []
    for number, turn in enumerate(plan["turns"]):
        sites, d, r = turn["shape"]
        B = {f"s{k}": torch.randn(d, r) for k in range(sites)}
        rotation = {f"s{k}": torch.randn(r, r, dtype=torch.float64) for k in range(sites)}
        array = Array(np.concatenate([b.numpy().reshape(-1) for b in B.values()]))
        sent = ArrayRecord({"B": array, "A.rotation": payload.pack_sites(rotation, np.float64)})
        size = ConfigRecord({"up": sites * d * r})
        messages = [Message(RecordDict({"f": sent, "size": size}), node, "train", group_id=str(number), ttl=300.0)
                    for node in nodes[: turn["nodes"]]]
        started = time.perf_counter()
        replies = list(polling.send_and_receive(messages, timeout=300))
        wall = time.perf_counter() - started
        own = max(reply.content["m"]["own"] for reply in replies)
        up = sum(payload.payload_bytes(reply.content["factors"]) for reply in replies)
        found.append({**turn, "wall": wall, "own": own, "down": len(replies) * payload.payload_bytes(sent), "up": up})
        open(plan["out"] + ".tmp", "w").write(json.dumps(found))
    open(plan["out"], "w").write(json.dumps(found))
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
class EvaluationResult:
    shape: str
    nodes: int
    beyond_s: float
    lowest_s: float
    highest_s: float
    own_s: float
    down: int
    up: int
    expected_down: int
    expected_up: int


def add_parser(benches: Any) -> None:
    parser = benches.add_parser(
        "wire", help="seconds a round on real nodes", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    turns = [
        {"nodes": nodes, "name": shape, "shape": SHAPES[shape]}
        for _ in range(arguments.repeats)
        for shape in arguments.shapes
        for nodes in arguments.nodes
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows = on_real_nodes(Path(folder), max(arguments.nodes), turns)
    found = [summarise(rows, shape, nodes) for shape in arguments.shapes for nodes in arguments.nodes]
    console = Console(width=140)
    machine = tell_machine(console)
    console.print(table(found))
    write_json(arguments.json, {"machine": machine, "results": [asdict(row) for row in found]})


def summarise(rows: list[dict[str, Any]], shape: str, nodes: int) -> EvaluationResult:
    mine = [row for row in rows if (row["name"], row["nodes"]) == (shape, nodes)]
    beyond = [row["wall"] - row["own"] for row in mine]
    sites, d, r = SHAPES[shape]
    down, up = 4 * sites * (r * d + 2 * r * r) * nodes, 4 * sites * r * d * nodes
    own = statistics.median(row["own"] for row in mine)
    return EvaluationResult(
        shape, nodes, statistics.median(beyond), min(beyond), max(beyond), own, mine[0]["down"], mine[0]["up"], down, up
    )


def table(found: list[EvaluationResult]) -> Table:
    grid = Table(title=f"{os.cpu_count()} CPU cores; the two fixed sleeps of the transport: {SLEEPS_S:g} s")
    heads = ["adapter", "nodes", "s beyond own work", "min … max", "x sleeps", "own work, s"]
    for head in (*heads, "bytes down", "x formula", "bytes up", "x formula"):
        grid.add_column(head, justify="left" if head == "adapter" else "right")
    for row in found:
        grid.add_row(
            row.shape, str(row.nodes), f"{row.beyond_s:.1f}", f"{row.lowest_s:.1f} … {row.highest_s:.1f}",
            f"{row.beyond_s / SLEEPS_S:.2f}", f"{row.own_s:.1f}", f"{row.down:,}",
            f"{row.down / row.expected_down:.3f}", f"{row.up:,}", f"{row.up / row.expected_up:.3f}",
        )  # fmt: skip
    return grid


def on_real_nodes(folder: Path, count: int, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    app, out = folder / "app", folder / "found.json"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "wire_client.py").write_text(CLIENT)
    (app / "wire_server.py").write_text(SERVER)
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"turns": turns, "out": str(out)}))
    with Loopback(folder / "flower", [""] * count) as nodes:
        nodes.submit(app, f'plan="{plan}"')
        nodes.wait(out.exists, 3600, "the last turn")
    rows: list[dict[str, Any]] = json.loads(out.read_text())
    return rows

"""Measure the bytes that one client receives and sends per round, by method, and compare them with formulas.

The messages are those of the server's downlink, packed for the wire, for adapters with the shapes of a model and
clients that reply with random factors. "down" is for a client that took part in every round, "down, new" for one that
joins in the last round. The formulas count 4-byte numbers of the former case; the rest is array headers.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from bench_adapters import SHAPES, Sites, zero_adapter
from bench_report import add_bench, add_json_option, write_json
from rich.console import Console
from rich.table import Table

from fedsvd.lora.adapter import Adapter
from fedsvd.lora.initialization import initialize_factors
from fedsvd.methods import State, build_method, sent_factors
from fedsvd.methods.aggregate import Reply
from fedsvd.wire import payload
from fedsvd.wire.train_messages import TrainTask
from server.downlink import Downlink

ROUNDS = 6
# (d_out, d_in, rank, number of clients K) -> numbers per site and round, (down, up), for a client in every round.
Formula = Callable[[int, int, int, int], tuple[float, float]]
FORMULAS: dict[str, tuple[dict[str, Any], str, str, Formula]] = {
    "fedsvd": ({}, "r·d_out + 2r²", "r·d_out", lambda o, i, r, k: (r * o + 2 * r * r, r * o)),
    "fedsvd, weight_svd": (
        {"init_a": "weight_svd"}, "r·d_out + 2r²", "r·d_out", lambda o, i, r, k: (r * o + 2 * r * r, r * o)),
    "fedsvd, dct": ({"init_a": "dct"}, "r·d_out + 2r²", "r·d_out", lambda o, i, r, k: (r * o + 2 * r * r, r * o)),
    "fedsvd_per_site": (
        {}, "r(d_out + d_in)", "r(d_out + d_in)", lambda o, i, r, k: (r * (o + i), r * (o + i))),
    "ffa_lora": ({}, "r·d_out", "r·d_out", lambda o, i, r, k: (r * o, r * o)),
    "fedavg_lora": ({}, "r(d_out + d_in)", "r(d_out + d_in)", lambda o, i, r, k: (r * (o + i), r * (o + i))),
    "fedex_lora": (
        {}, "(K + 1) r(d_out + d_in)", "r(d_out + d_in)", lambda o, i, r, k: ((k + 1) * r * (o + i), r * (o + i))),
    "flora": (
        {}, "K r(d_out + d_in) + r·d_in", "r(d_out + d_in)",
        lambda o, i, r, k: (k * r * (o + i) + r * i, r * (o + i))),
    "flexlora": ({}, "r(d_out + d_in)", "r(d_out + d_in)", lambda o, i, r, k: (r * (o + i), r * (o + i))),
    "rolora": ({}, "r·d_in or r·d_out", "r·d_in or r·d_out", lambda o, i, r, k: (r * o, r * i)),
    "fedsa_lora": ({}, "r·d_in", "r·d_in", lambda o, i, r, k: (r * i, r * i)),
    "fed_sb": ({}, "r²", "r²", lambda o, i, r, k: (r * r, r * r)),
    "tangent": ({}, "r(d_out + d_in)", "r(d_out + d_in)", lambda o, i, r, k: (r * (o + i), r * (o + i))),
}  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    method: str
    down: int
    down_new: int
    up: int
    formula_down: str
    formula_up: str
    expected_down: float
    expected_up: float


def add_parser(benches: Any) -> None:
    parser = add_bench(benches, "traffic", "bytes per round", __doc__)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--clients", type=int, default=4)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    sites, rank = SHAPES[arguments.shape]
    results = [measure(name, sites, rank, arguments.clients) for name in FORMULAS]
    title = f"{arguments.shape}: {len(sites)} adapted layers, r = {rank}, K = {arguments.clients}; bytes per client"
    table = Table(title=title)
    for heading in ("method", "down", "formula", "ratio", "down, new", "up", "formula", "ratio"):
        table.add_column(heading, justify="left" if heading in ("method", "formula") else "right")
    for row in results:
        table.add_row(
            row.method, f"{row.down:,}", row.formula_down, f"{row.down / row.expected_down:.3f}",
            f"{row.down_new:,}", f"{row.up:,}", row.formula_up, f"{row.up / row.expected_up:.3f}",
        )  # fmt: skip
    Console(width=150).print(table)
    write_json(arguments.json, [asdict(row) for row in results])


def measure(name: str, sites: Sites, rank: int, clients: int) -> Traffic:
    options, formula_down, formula_up, formula = FORMULAS[name]
    method = build_method({"name": name.split(",")[0], **options})
    weights = {
        f"site{k}": torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k, shape in enumerate(sites)
    }
    zeros = zero_adapter(sites, rank, core=method.traits.core)
    initial = initialize_factors(zeros, init_a=method.init_a, init_b=method.init_b, seed=0, weights=weights)
    downlink, up = Downlink(method, initial, weights=weights), 0
    state: State = {}
    for server_round in range(1, ROUNDS + 1):
        trains, uplink = method.trains(server_round), sent_factors(method, server_round)
        task = TrainTask(server_round, trains, uplink)
        core = frozenset({"core"}) if method.traits.core else frozenset()
        sent = downlink.request(0, task, core)
        new = downlink.request(99, task, core)
        downlink.mark_delivered(0)
        replies = [random_reply(downlink.adapter, uplink, client) for client in range(clients)]
        up = payload.payload_bytes(payload.pack(downlink.adapter.with_parts(replies[0].parts), uplink))
        step = method.server_step(downlink.adapter, replies, server_round, state)
        state = step.state
        downlink.advance(step, server_round)
    expected = [4 * sum(formula(o, i, rank, clients)[side] for o, i in sites) for side in (0, 1)]
    down, down_new = payload.payload_bytes(sent.factors), payload.payload_bytes(new.factors)
    return Traffic(name, down, down_new, up, formula_down, formula_up, *expected)


def random_reply(adapter: Adapter, parts: frozenset[Any], client: int) -> Reply:
    generator = torch.Generator().manual_seed(client)
    updated = {
        part: {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in adapter.part(part).items()}
        for part in parts
    }
    return Reply(client, 1, updated)

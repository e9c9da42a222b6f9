"""Compare FedSVD's server step, for all adapted layers (sites) of a model, with alternatives.

Each repeat runs every alternative once; at 7B shapes the dense ones run in the first two repeats only. `warm` is the
median of 50 consecutive calls, when the factors are in the CPU caches and copying is fastest. A step that was timed on
fewer sites than the model has is scaled up and marked with *.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from bench_report import add_bench, add_json_option, print_machine, write_json
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedsvd.lora.refactorize import orthonormal_rows, refactorize

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """The adapted layers of a model, all of one shape.

    Attributes:
        model: Name of the model.
        sites: Number of adapted layers.
        d: Input and output dimension.
        rank: LoRA rank.
        dense_sites: Number of sites on which the dense alternatives are timed, unless --full is given.
        dense_repeats: Maximum number of repeats of the dense alternatives.
    """

    model: str
    sites: int
    d: int
    rank: int
    dense_sites: int
    dense_repeats: int = 5


SHAPES = {
    "minilm": Shape("MiniLM-L6", sites=12, d=384, rank=8, dense_sites=12),
    "roberta-large": Shape("RoBERTa-large", sites=48, d=1024, rank=8, dense_sites=48),
    "7b": Shape("7B-type", sites=64, d=4096, rank=16, dense_sites=1, dense_repeats=2),
}


@dataclass(frozen=True)
class Contender:
    """One implementation of the server step.

    Attributes:
        name: Name in the table.
        step: Function from (B, A) to the new (B, A).
        dense: Whether it forms the products BA.
        first_round: Whether its input has a random A, as in the first round; otherwise A has orthonormal rows.
    """

    name: str
    step: Callable[[Tensor, Tensor], Factors]
    dense: bool = False
    first_round: bool = False


@dataclass(frozen=True)
class Result:
    shape: str
    device: str
    contender: str
    sites: int
    sites_timed: int
    repeats: int
    median_s: float
    min_s: float
    max_s: float
    warm_s: float | None
    times_refactorize: float
    product_error: float
    orthonormality_error: float


def step_refactorize(B: Tensor, A: Tensor) -> Factors:
    new = refactorize(B, A)
    return new.B, new.A


def step_copy(B: Tensor, A: Tensor) -> Factors:
    return B.clone(), A.clone()


def step_lowrank(B: Tensor, A: Tensor) -> Factors:
    rank = A.shape[-2]
    parts = [torch.svd_lowrank(b @ a, q=rank) for b, a in zip(B, A, strict=True)]
    return torch.stack([U * S for U, S, _ in parts]), torch.stack([V.mT for *_, V in parts])


def step_full_svd(B: Tensor, A: Tensor) -> Factors:
    rank = A.shape[-2]
    new_B, new_A = torch.empty_like(B), torch.empty_like(A)
    for site, (b, a) in enumerate(zip(B, A, strict=True)):
        U, S, Vh = torch.linalg.svd(b @ a, full_matrices=False)
        new_B[site], new_A[site] = U[:, :rank] * S[:rank], Vh[:rank]
    return new_B, new_A


CONTENDERS = (
    Contender("refactorize", step_refactorize),
    Contender("copy of A and B", step_copy),
    Contender("refactorize, first round", step_refactorize, first_round=True),
    Contender("svd_lowrank of each BA", step_lowrank, dense=True),
    Contender("full SVD of each BA", step_full_svd, dense=True),
)


def add_parser(benches: Any) -> None:
    parser = add_bench(benches, "refactorize", "FedSVD's server step", __doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5, help="repeats of every alternative (default 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    parser.add_argument(
        "--full", action="store_true", help="time the dense alternatives on every site, which may take very long"
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.repeats < 1 or arguments.threads < 1:
        sys.exit("--repeats and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    console = Console(width=None if sys.stdout.isatty() else 120)
    machine = print_machine(console)
    results: list[Result] = []
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for key in arguments.shapes:
            measured = measure(SHAPES[key], device, arguments.repeats, arguments.full)
            console.print(table(SHAPES[key], measured))
            results += measured
    write_json(arguments.json, {"machine": machine, "results": [asdict(result) for result in results]})


def measure(shape: Shape, device: str, repeats: int, full: bool) -> list[Result]:
    inputs = draw_inputs(shape, device, full)
    outputs: dict[str, Factors] = {}
    seconds = {contender.name: list[float]() for contender in CONTENDERS}
    for repeat in range(repeats):
        for contender in CONTENDERS:
            if contender.dense and repeat >= shape.dense_repeats:
                continue
            elapsed, outputs[contender.name] = timed(contender, *inputs[contender.name])
            seconds[contender.name].append(elapsed * shape.sites / len(inputs[contender.name][0]))
    reference = statistics.median(seconds[CONTENDERS[0].name])
    return [
        summarize(shape, device, contender, inputs[contender.name], outputs[contender.name], runs, reference)
        for contender, runs in zip(CONTENDERS, seconds.values(), strict=True)
    ]


def draw_inputs(shape: Shape, device: str, full: bool) -> dict[str, Factors]:
    torch.manual_seed(0)
    B = torch.randn(shape.sites, shape.d, shape.rank, device=device)
    first_A = torch.randn(shape.sites, shape.rank, shape.d, device=device) / shape.d**0.5
    inputs = {}
    for contender in CONTENDERS:
        sites = shape.dense_sites if contender.dense and not full else shape.sites
        inputs[contender.name] = B[:sites], (first_A if contender.first_round else orthonormal_rows(first_A))[:sites]
        if not contender.dense:
            contender.step(*inputs[contender.name])
    return inputs


def summarize(
    shape: Shape, device: str, contender: Contender, old: Factors, new: Factors, runs: list[float], reference: float
) -> Result:
    warm = None if contender.dense else statistics.median(timed(contender, *old)[0] for _ in range(50))
    return Result(
        shape=shape.model,
        device=device,
        contender=contender.name,
        sites=shape.sites,
        sites_timed=len(old[0]),
        repeats=len(runs),
        median_s=statistics.median(runs),
        min_s=min(runs),
        max_s=max(runs),
        warm_s=warm,
        times_refactorize=statistics.median(runs) / reference,
        product_error=product_error(old, new),
        orthonormality_error=orthonormality_error(new[1]),
    )


def timed(contender: Contender, B: Tensor, A: Tensor) -> tuple[float, Factors]:
    if B.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    factors = contender.step(B, A)
    if B.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, factors


def product_error(old: Factors, new: Factors) -> float:
    """Return the largest ‖B'A' - BA‖_F / ‖BA‖_F over sites.

    It is computed from the factors in float64: the difference is [B', -B] [A'; A], whose norm follows from QR
    decompositions of the two blocks.
    """

    def norm(B: Tensor, A: Tensor) -> Tensor:
        cores = torch.linalg.qr(B.double(), mode="r").R, torch.linalg.qr(A.double().mT, mode="r").R
        product: Tensor = torch.linalg.matrix_norm(cores[0] @ cores[1].mT)
        return product

    difference = norm(torch.cat([new[0], -old[0]], dim=-1), torch.cat([new[1], old[1]], dim=-2))
    return float((difference / norm(*old)).max())


def orthonormality_error(A: Tensor) -> float:
    gram = A.double() @ A.double().mT
    return float((gram - torch.eye(gram.shape[-1], device=A.device, dtype=gram.dtype)).abs().max())


def table(shape: Shape, results: list[Result]) -> Table:
    title = f"{shape.model}: {shape.sites} sites of {shape.d} x {shape.d}, r = {shape.rank}, {results[0].device}"
    scaled = sorted({result.sites_timed for result in results if result.sites_timed < result.sites})
    caption = "".join(f"* extrapolated: timed on {n} of {shape.sites} sites and scaled up" for n in scaled)
    grid = Table(title=title, caption=caption or None)
    grid.add_column("step")
    for heading in ("median ms", "min … max ms", "warm ms", "x refactorize", "error of BA", "error of AAᵀ"):
        grid.add_column(heading, justify="right")
    for result in results:
        mark = "*" if result.sites_timed < result.sites else ""
        grid.add_row(
            result.contender + mark,
            f"{result.median_s * 1e3:,.3f}",
            f"{result.min_s * 1e3:,.3f} … {result.max_s * 1e3:,.3f}",
            "" if result.warm_s is None else f"{result.warm_s * 1e3:,.3f}",
            f"{result.times_refactorize:,.3f}" if result.times_refactorize < 10 else f"{result.times_refactorize:,.0f}",
            f"{result.product_error:.1e}",
            f"{result.orthonormality_error:.1e}",
        )
    return grid

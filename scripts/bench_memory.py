"""Peak memory of a private step and of a plain PEFT step on a 4-bit base of 7B shape, on the CPU (Linux only).

Every step runs in a process of its own, on a Llama-type model with random weights (32 layers of width 4096, nf4) and
LoRA of rank 16 on queries and values. The figure is the peak resident memory above that of the loaded model. It needs
bitsandbytes, 16 GiB of memory, and about ten minutes on two cores for each step.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_dp_modes import Bench
from bench_gpu import MODELS, PLAIN, STEPS, VOCABULARY, Shape
from bench_report import add_json_option, print_machine, write_json
from rich.console import Console
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedsvd.lora import peft_model
from fedsvd.lora.initialization import initialize_factors

PRIVATE = "private, fused"
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def add_parser(benches: Any) -> None:
    parser = benches.add_parser(
        "memory",
        help="memory of a private step at 7B shapes",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
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
    bench = build(shape)
    loaded = memory_mib("VmRSS")
    CLEAR_REFS.write_text("5")  # sets the peak to the current value
    start = time.perf_counter()
    STEPS[step](bench)
    seconds = time.perf_counter() - start
    return {"loaded_mib": loaded, "peak_mib": memory_mib("VmHWM") - loaded, "seconds": round(seconds, 1)}


def build(shape: Shape) -> Bench:
    """Build the model layer by layer: in bfloat16 it would not fit into memory beside the quantized one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=shape.width, num_hidden_layers=shape.layers, use_cache=False,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, intermediate_size=shape.inner,
    )  # fmt: skip
    with torch.device("meta"):
        base = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    for name, layer in [*base.named_modules()]:
        if isinstance(layer, nn.Linear) and name != "lm_head":
            base.set_submodule(name, random_linear(layer.in_features, layer.out_features))
        elif parameters := dict(layer.named_parameters(recurse=False)):
            for key, parameter in parameters.items():
                value = torch.empty(parameter.shape, dtype=torch.bfloat16).normal_(0, 0.02)
                setattr(layer, key, nn.Parameter(value, requires_grad=False))
    base.model.rotary_emb = type(base.model.rotary_emb)(config)
    base.is_loaded_in_4bit = True
    model: nn.Module = peft_model.attach(base, rank=16, lora_alpha=16, target_modules="auto", task="causal_lm")
    peft_model.write(model, initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="zeros", seed=0))
    ids = torch.randint(3, VOCABULARY, (shape.batch, shape.length))
    return Bench(model.train(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids, causal=True)


def random_linear(d_in: int, d_out: int) -> nn.Module:
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(d_in, d_out, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    weight = torch.empty(d_out, d_in, dtype=torch.bfloat16).normal_(0, 0.02)
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    layer.support_avx512bf16_for_cpu = False
    return layer.to("cpu")


def memory_mib(key: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024

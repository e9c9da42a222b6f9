"""What a run's adapter computes, whatever factors it is made of."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def products(folder: Path) -> dict[str, torch.Tensor]:
    """B A of every site, which (unlike its factors) is one matrix, and the head."""
    found = load_file(folder / "adapter" / "adapter_model.safetensors")
    sites = {name.removesuffix(".lora_A.weight") for name in found if name.endswith(".lora_A.weight")}
    matrices = {site: found[f"{site}.lora_B.weight"] @ found[f"{site}.lora_A.weight"] for site in sites}
    return matrices | {name: tensor for name, tensor in found.items() if ".lora_" not in name}

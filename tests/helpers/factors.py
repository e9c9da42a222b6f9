"""The adapter of a run, and its weight updates."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def load_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a run's adapter, by their names in its file."""
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def weight_updates(folder: Path) -> dict[str, torch.Tensor]:
    """Return the product B A of each site, which unlike its factors is unique, and the head's parameters."""
    saved = load_adapter(folder)
    sites = {name.removesuffix(".lora_A.weight") for name in saved if name.endswith(".lora_A.weight")}
    updates = {site: saved[f"{site}.lora_B.weight"] @ saved[f"{site}.lora_A.weight"] for site in sites}
    return updates | {name: tensor for name, tensor in saved.items() if ".lora_" not in name}

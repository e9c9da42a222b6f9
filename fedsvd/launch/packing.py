"""How many simulated clients run at the same time on this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fedsvd.config import Config, FederationConfig
from fedsvd.errors import ConfigError, RunError
from fedsvd.launch.client_memory import ClientMemory, measure_client_memory

# Left for the server and for everything else on the machine.
_USABLE = 0.9
# Ray counts fractions of a GPU in steps of this size.
_GPU_STEP = 1e-4


def packed_federation(config: Config, overrides: Sequence[str]) -> FederationConfig:
    """Replace ``auto`` in ``federation.client_num_cpus`` and ``client_num_gpus`` by what the memory allows.

    Args:
        config: The configuration of a simulated run.
        overrides: The overrides that it was composed from.

    Raises:
        ConfigError: The memory of a client cannot be measured with these settings.
        RunError: No client fits on this machine.
    """
    federation = config.federation
    if "auto" not in (federation.client_num_cpus, federation.client_num_gpus):
        return federation
    # Where no client trains, there is no step to measure.
    cpus, per_gpu = _measured(config, overrides) if config.train.rounds else (1.0, 0.0)
    return replace(
        federation,
        client_num_cpus=cpus if federation.client_num_cpus == "auto" else federation.client_num_cpus,
        client_num_gpus=per_gpu if federation.client_num_gpus == "auto" else federation.client_num_gpus,
    )


def _measured(config: Config, overrides: Sequence[str]) -> tuple[float, float]:
    """Return the cores and the share of a GPU for each client, by the memory of a training step."""
    federation = config.federation
    _check_measurable(config)
    # Clients without GPUs train on the CPU, also where this process sees a GPU.
    on_cpu = ["device=cpu"] if federation.client_num_gpus == 0 else []
    memory = measure_client_memory([*overrides, *on_cpu])
    gpus = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())] if memory.gpu else []
    cpus, per_gpu = pack(memory, federation.num_sampled, os.cpu_count() or 1, available_ram(), gpus)
    print(
        f"packing: {cpus:g} cores and {per_gpu:g} GPUs for each client, which takes up to {memory.ram >> 20:,} MiB of "
        f"main memory and {memory.gpu >> 20:,} MiB of a GPU (measured)"
    )
    return cpus, per_gpu


def pack(memory: ClientMemory, clients: int, cores: int, ram: int, gpus: Sequence[int]) -> tuple[float, float]:
    """Return the cores and the share of a GPU for each client, with which as many as fit run at the same time.

    Args:
        memory: The memory of one client.
        clients: Number of clients in a round.
        cores: Number of CPU cores.
        ram: Bytes of main memory that are available.
        gpus: Free bytes of each GPU; empty for training on the CPU.

    Raises:
        RunError: Not even one client fits.
    """
    fit = min(clients, cores, int(_USABLE * ram) // memory.ram)
    per_gpu = int(_USABLE * min(gpus)) // memory.gpu if gpus else 0
    if gpus:
        fit = min(fit, per_gpu * len(gpus))
    if fit < 1:
        needed = f"{memory.ram >> 20:,} MiB of main memory" + (
            f" and {memory.gpu >> 20:,} MiB of a GPU" if gpus else ""
        )
        free = f"{ram >> 20:,} MiB" + (f" and {min(gpus) >> 20:,} MiB" if gpus else "")
        raise RunError(
            f"a client needs {needed}, and {free} are available (of which {_USABLE:.0%} are used): lower "
            "train.physical_batch_size or train.prefix_cache_mib, or free memory."
        )
    if not gpus:
        return cores / fit, 0.0
    on_each = math.ceil(fit / len(gpus))
    return cores / fit, math.floor(1 / on_each / _GPU_STEP) * _GPU_STEP


def available_ram() -> int:
    """Return the bytes of main memory that processes can still take, where Linux says so, or else all there are."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_measurable(config: Config) -> None:
    if config.federation.ray_address:
        raise ConfigError(
            f"federation.client_num_cpus or client_num_gpus = auto is not possible with federation.ray_address = "
            f"{config.federation.ray_address}: memory is measured on this machine, not on a cluster. Give numbers."
        )
    if config.train.physical_batch_size == "auto":
        raise ConfigError(
            "federation.client_num_cpus or client_num_gpus = auto is not possible with train.physical_batch_size = "
            "auto, with which a client takes all memory that is free. Give train.physical_batch_size as a number."
        )

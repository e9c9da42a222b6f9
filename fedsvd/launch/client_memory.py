"""The memory that one simulated client needs, measured on a training step in a process of its own.

The step computes the gradients of one physical batch of a client's longest texts, and its result is discarded with the
process: nothing is released, so no privacy is spent and no ledger is charged.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fedsvd.config import Config
from fedsvd.errors import RunError

# What CUDA itself takes in each process, which torch does not count.
_CUDA_CONTEXT = 512 << 20
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ClientMemory:
    """The memory of one client's process.

    Attributes:
        ram: Bytes of main memory.
        gpu: Bytes of a GPU's memory; 0 on a CPU.
    """

    ram: int
    gpu: int


def measure_client_memory(overrides: Sequence[str]) -> ClientMemory:
    """Run a training step of a run's first client in another process, and return its peak memory.

    Args:
        overrides: The overrides of the run.

    Raises:
        RunError: The step failed, for example because a client needs more memory than there is.
    """
    command = [sys.executable, "-m", "fedsvd.launch.client_memory", json.dumps(list(overrides))]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - own module
    if completed.returncode:
        reason = (completed.stderr.strip().splitlines() or [f"exit status {completed.returncode}"])[-1]
        raise RunError(
            f"the memory of a client could not be measured: {reason}. Remove the cause, or set "
            "federation.client_num_cpus and federation.client_num_gpus to numbers."
        )
    return ClientMemory(**json.loads(completed.stdout.splitlines()[-1]))


def _measure(config: Config) -> ClientMemory:
    import torch

    from fedsvd.runtime.model import resolve_device

    _take_step(config)
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    ram = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    # One step does not fill the cache of frozen layers, which is on the GPU as far as it fits there, else on the CPU.
    device, cache = resolve_device(config.device), config.train.prefix_cache_mib * _MEBIBYTE
    gpu = torch.cuda.max_memory_reserved(device) + _CUDA_CONTEXT + cache if device.type == "cuda" else 0
    return ClientMemory(ram + cache, gpu)


def _take_step(config: Config) -> None:
    from fedsvd.methods import build_run_method
    from fedsvd.privacy.dp_sgd import DPSGD
    from fedsvd.runtime.data import load_client_data
    from fedsvd.runtime.losses import batch_limit, example_lengths, per_example_losses
    from fedsvd.runtime.model import client_config, load_model
    from fedsvd.runtime.private_round import prepare_round, train_privately
    from fedsvd.runtime.round_parts import prepare_training, trained_parts
    from fedsvd.training.loop import train_plain

    partition_id = min(config.federation.participants or (0,))
    config = client_config(config, partition_id)
    data = load_client_data(config, partition_id)
    # In the last round, methods that start with the head alone train factors, too.
    server_round = config.train.rounds
    parts = trained_parts(build_run_method(config), config, server_round)
    lengths, losses = example_lengths(data), per_example_losses(data, config)
    longest = sorted(range(len(lengths)), key=lambda position: lengths[position])[-(batch_limit(config).size or 1) :]
    if config.privacy.name == "dp_sgd":
        mechanism = DPSGD(1.0, config.privacy.max_grad_norm, 1.0, 1, len(longest))
        train_privately(
            config, prepare_round(config, server_round, parts),
            lambda model, positions: losses(model, [longest[i] for i in positions]), len(longest), mechanism,
        )  # fmt: skip
    else:
        model = load_model(config)
        train_plain(model, prepare_training(model, parts, config.train, server_round)[0], losses, [longest])


def main(overrides: Sequence[str]) -> None:
    """Print the memory of a run's first client as JSON."""
    from fedsvd.config.compose import compose

    print(json.dumps(asdict(_measure(compose(overrides)))))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

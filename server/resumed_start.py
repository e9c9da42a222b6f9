"""Where a resumed run starts: the newest checkpoint, if its clients have the factors that it has."""

from __future__ import annotations

from pathlib import Path

import torch

from fedsvd.lora.adapter import Adapter
from fedsvd.lora.initialization import initialize_factors
from fedsvd.methods.head_rounds import HeadOnly
from server.checkpoint import Checkpoint, load_latest, other_start
from server.downlink import read_versions


def load_start(folder: Path, initial: Adapter, seed: int) -> Checkpoint:
    """Load the newest checkpoint of a run, and check that its initial factors are those of the run's method.

    Earlier versions initialized all runs of the head alone alike. With ``train.head_rounds``, such a run would go on
    with factors other than those that its clients draw.

    Args:
        folder: The ``checkpoints`` directory of a run.
        initial: The run's initial adapter.
        seed: The seed of the run.

    Raises:
        ResumeError: The run was initialized by an earlier version, and not like its method.
        RunError: See `server.checkpoint.load_latest`.
    """
    checkpoint, alike = load_latest(folder, initial), HeadOnly()
    drawn = initialize_factors(initial, init_a=alike.init_a, init_b=alike.init_b, seed=seed)
    versions = read_versions(checkpoint.state, checkpoint.adapter) if checkpoint.state else {}
    for part, saved in versions.items():
        for name, origin in saved.origin.items() if saved.version == 0 else ():
            start, old = initial.part(part)[name].to(origin), drawn.part(part)[name].to(origin)
            # Initializations from weights or public text can differ in the last digits on another machine.
            if torch.equal(origin, old) and not torch.equal(origin, start):
                raise other_start(folder, checkpoint.server_round)
    return checkpoint

"""The runs of scripts/demo: one without privacy, for a line in the plot, then the private one.

Both are in one process and share the features of all texts, which are most of the work. Texts that are really private
must never be trained on without privacy; those of the demo are public.
"""

import sys
import tempfile
from collections.abc import Sequence

from rich.console import Console

import fedsvd
from fedsvd.cli import main
from fedsvd.errors import FedSVDError

EXPERIMENT = "experiment=demo"
# The same model on all texts in one place: LoRA and head by AdamW, one pass.
WITHOUT_PRIVACY = (
    "privacy=none", "federation.num_clients=1", "partition=iid", "method=fedavg_lora", "train.optimizer=adamw",
    "train.learning_rate=0.002", "train.head_learning_rate=null", "train.head_rounds=0", "train.num_rounds=1",
    "train.sample_rate=null", "train.batch_size=64", "train.local_steps=125", "train.eval_every=1", "plots=false",
)  # fmt: skip


def run(arguments: Sequence[str]) -> int:
    """Return the exit code of the private run, with ``arguments`` as its overrides."""
    reference = accuracy_without_privacy(arguments)
    line = [] if reference is None else [f"reference_accuracy={reference:.4f}"]
    return main(["train", EXPERIMENT, *line, *arguments])


def accuracy_without_privacy(arguments: Sequence[str]) -> float | None:
    """Return the held-out accuracy without privacy and without federation; None if the arguments are not overrides.

    Data and model are those of the arguments; what they say about training has no effect here.
    """
    if any("=" not in item or item.startswith(("-", "resume=", "reference_accuracy=")) for item in arguments):
        return None
    overrides = [item for item in arguments if item.startswith(("data", "model", "seed=", "device="))]
    console = Console(highlight=False)
    console.print("training without privacy, for a line in the plot; this also computes what both runs need once …")
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = fedsvd.train(EXPERIMENT, *overrides, *WITHOUT_PRIVACY, run_dir=f"{folder}/run")
    except FedSVDError:
        # The private run reports the same error.
        return None
    accuracy = float(result.metrics[-1]["accuracy"])
    console.print(f"accuracy without privacy, with all texts in one place: {accuracy:.1%}\n")
    return accuracy


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

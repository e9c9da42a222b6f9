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
from fedsvd.config.compose import read_config
from fedsvd.config.task import TASKS, last_value
from fedsvd.errors import FedSVDError
from fedsvd.runs.folder import RunFolder

EXPERIMENT = "experiment=demo"
# The same model on all texts in one place: LoRA and head by AdamW, one pass.
WITHOUT_PRIVACY = (
    "privacy=none", "federation.num_clients=1", "partition=iid", "method=fedavg_lora", "train.optimizer=adamw",
    "train.learning_rate=0.002", "train.head_learning_rate=null", "train.head_rounds=0", "train.num_rounds=1",
    "train.sample_rate=null", "train.batch_size=64", "train.local_steps=125", "train.eval_every=1", "plots=false",
)  # fmt: skip


def run(arguments: Sequence[str]) -> int:
    """Return the exit code of the private run, with ``arguments`` as its overrides."""
    reference = score_without_privacy(arguments)
    line = [] if reference is None else [f"reference_accuracy={reference:.4f}"]
    return main(["train", EXPERIMENT, *line, *arguments])


def score_without_privacy(arguments: Sequence[str]) -> float | None:
    """Return the held-out accuracy, or the task's own metric, without privacy and without federation.

    Data and model are those of the arguments; what they say about training has no effect here. None if the arguments
    are not overrides, or if ``reference_accuracy`` cannot hold the value: it is undefined, or not between 0 and 1.
    """
    if any("=" not in item or item.startswith(("-", "resume=", "reference_accuracy=")) for item in arguments):
        return None
    overrides = [item for item in arguments if item.startswith(("data", "model", "seed=", "device="))]
    console = Console(highlight=False)
    console.print("training without privacy, for a line in the plot; this also computes what both runs need once …")
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = fedsvd.train(EXPERIMENT, *overrides, *WITHOUT_PRIVACY, run_dir=f"{folder}/run")
            metric = TASKS[read_config(RunFolder(result.folder).config).task].metrics[0]
    except FedSVDError:
        # The private run reports the same error.
        return None
    score = last_value(result.metrics, metric)
    # As it is passed on.
    drawn = score is not None and 0 < round(score, 4) < 1
    note = "" if drawn else " (no line in the plot)"
    console.print(f"{metric.label} without privacy, with all texts in one place: {metric.format(score)}{note}\n")
    return score if drawn else None


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

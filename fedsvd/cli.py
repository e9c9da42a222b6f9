"""The ``fedsvd`` command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from fedsvd import __version__
from fedsvd.errors import ConfigError, FedSVDError
from fedsvd.report.literal import literal

USAGE = """\
usage: fedsvd COMMAND [ARGUMENT …]

Federated LoRA fine-tuning under differential privacy.

training:
  train [KEY=VALUE …]                  train a model in a federation (Hydra overrides)
  train -m KEY=V1,V2 …                 train once per combination of the values (sweep)
  train resume=RUN_DIR                 resume an interrupted run (with -m: a sweep)
  train --cfg job                      print the composed configuration
  compare [KEY=VALUE …]                compare methods over tasks, budgets and seeds

privacy:
  privacy plan [KEY=VALUE …]           show the privacy cost of a run before it starts
  privacy ledger PATH                  show the privacy spent according to a client's ledger
  privacy ledger PATH --new-account R  start a new account for data of other people, for reason R
  audit [KEY=VALUE …]                  attack one client and check the claimed ε

finished runs:
  report DIR… [--to DIR]               write an HTML and Markdown report on all runs in DIR
  evaluate RUN_DIR [data=…]            evaluate the model on the run's held-out data or other data
  predict RUN_DIR --text TEXT          predict the label of, or generate an answer to, a text
  predict RUN_DIR --file FILE          the same for every text in a file
  export RUN_DIR --to DIR [--merge]    export the model for transformers and PEFT

deployment:
  doctor [certs=DIR ledger=FILE …]     check this machine and suggest fixes

options:
  -h, --help                           show this message
  --version                            show the version

examples:
  fedsvd train experiment=smoke
  fedsvd train experiment=demo method=ffa_lora privacy.target_epsilon=3
  fedsvd train -m privacy.target_epsilon=1,3,6 method=fedsvd,ffa_lora
  fedsvd train -m experiment=epsilon_sweep hydra/launcher=joblib
  fedsvd audit experiment=smoke model.rank=32
"""
_COMMANDS = ("train", "privacy", "audit", "compare", "doctor", "predict", "evaluate", "export", "report")

# Set before flwr and ray are imported, so that no run sends telemetry or checks for updates.
_NO_TELEMETRY = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Command-line arguments without the program name; defaults to those of the process.

    Returns:
        Exit status: 0 for success, 1 for failure, 2 for invalid usage or configuration.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        print(f"fedsvd {__version__}")
        return 0
    for name, value in _NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    try:
        if command not in _COMMANDS:
            raise ConfigError(
                f"unknown command {command!r}; available commands: {', '.join(_COMMANDS)}. See fedsvd --help."
            )
        # Imported late, so that a command loads only what it needs.
        from fedsvd.config.overrides import quote_separator

        importlib.import_module(f"fedsvd.commands.{command}").run([quote_separator(argument) for argument in rest])
    except FedSVDError as error:
        # Some messages have several lines.
        message = literal(error, keep="\n")
        Console(stderr=True).print(literal("error:", "bold red"), message, soft_wrap=True)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The ``fedsvd`` command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from fedsvd import __version__
from fedsvd.errors import ConfigError, FedSVDError

USAGE = """\
usage: fedsvd train [KEY=VALUE …]        run a federation (Hydra overrides)
       fedsvd train -m KEY=V1,V2 …       sweep
       fedsvd train --cfg job            print the composed configuration
       fedsvd train resume=RUN_FOLDER    go on with a run that was cut off (a sweep: with -m)
       fedsvd privacy plan [KEY=VALUE …] what a run will cost each client, before it runs
       fedsvd privacy ledger PATH        what a client's ledger says has been spent
       fedsvd audit [KEY=VALUE …]        attack one client, and hold the outcome against its ε
       fedsvd compare [KEY=VALUE …]      methods × budgets × seeds, each with its own learning rate
       fedsvd doctor [certs=… ledger=… …] look this machine over, and say what to do
       fedsvd predict RUN_FOLDER --text TEXT | --file FILE   what a run's model says
       fedsvd evaluate RUN_FOLDER [data=…]    how good it is, also on other data
       fedsvd export RUN_FOLDER --to FOLDER [--merge]   for transformers and PEFT alone
       fedsvd report FOLDER… [--to DIR]  one page on a run, or on all runs below the folders
       fedsvd --version

examples:
  fedsvd train experiment=smoke
  fedsvd train experiment=demo method=ffa_lora privacy.target_epsilon=3
  fedsvd train -m privacy.target_epsilon=1,3,6 method=fedsvd,ffa_lora
  fedsvd train -m experiment=epsilon_sweep hydra/launcher=joblib
  fedsvd audit experiment=smoke model.rank=32
"""
_COMMANDS = ("train", "privacy", "audit", "compare", "doctor", "predict", "evaluate", "export", "report")

# Said before flwr is imported: no run of ours reports anything to anybody.
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 failed, 2 wrong usage or configuration."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"fedsvd {__version__}")
        return 0
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        if words[0] not in _COMMANDS:
            raise ConfigError(f"there is no command {words[0]!r}; allowed: {', '.join(_COMMANDS)}. See fedsvd --help.")
        # Imported late: a command loads what it needs, and no more.
        importlib.import_module(f"fedsvd.commands.{words[0]}").run(words[1:])
    except FedSVDError as error:
        said = f"[bold red]error[/bold red] {escape(str(error))}"
        Console(stderr=True).print(said, soft_wrap=True, highlight=False)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

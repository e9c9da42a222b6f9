"""Usage of the program and of each command, for ``--help`` and for error messages."""

from __future__ import annotations

import textwrap
from types import MappingProxyType

USAGE = """\
usage: fedsvd COMMAND [ARGUMENT …]

Federated LoRA fine-tuning under differential privacy.

training:
  train [KEY=VALUE …]                  train a model in a federation (Hydra overrides)
  train -m KEY=V1,V2 …                 train once per combination of the values (sweep)
  train resume=RUN_DIR                 resume an interrupted run (with -m: a sweep)
  train --cfg job                      print the composed configuration
  train --config-dir DIR …             also use the YAML files in DIR (DIR/experiment/NAME.yaml)
  watch RUN_DIR|CONNECTION             show a run that is in progress on a page in the browser
  compare [KEY=VALUE …]                compare methods over tasks, budgets and seeds

privacy:
  privacy plan [KEY=VALUE …]           show the privacy cost of a run before it starts
  privacy ledger PATH                  show the privacy spent according to a client's ledger
  privacy ledger PATH --new-account R  start a new account for data of other people, for reason R
  audit [KEY=VALUE …]                  attack one client and check the claimed ε

finished runs:
  report DIR… [--to DIR]               write an HTML and Markdown report on all runs in DIR
  evaluate RUN_DIR [data=…]            evaluate the model on the run's held-out data or other data
  predict RUN_DIR --text TEXT          predict a text: its label, or an answer to it
  predict RUN_DIR --file FILE          the same for every text in a file
  export RUN_DIR --to DIR [--merge]    export the model for transformers and PEFT

deployment:
  doctor [certs=DIR ledger=FILE …]     check this machine and suggest fixes
  trainer socket=PATH                  start a node's trainer before its first message

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

# By command, its usage lines and what they mean.
_COMMANDS = MappingProxyType(
    {
        "compare": (
            "fedsvd compare [KEY=VALUE …]",
            "Tune and run all contenders over tasks, privacy budgets and seeds, and write tables, paired differences "
            "and plots. A key of fedsvd train applies to every run for which task, contender and, without privacy, "
            "compare.without_privacy do not set it. The comparison sets privacy, privacy.name, privacy.target_epsilon, "
            "train.learning_rate, seed and data.evaluate_on itself and refuses them: give compare.epsilons, "
            "compare.learning_rates and compare.seeds. plots, reference_accuracy and resume have no meaning for them "
            "and are refused, too. compare.KEY=VALUE sets the comparison, and run_dir=DIR its directory. Run it again "
            "with the same run_dir to continue an interrupted comparison.",
        ),
        "privacy": (
            "fedsvd privacy plan [KEY=VALUE …]\n"
            "       fedsvd privacy ledger PATH [target_delta=… accountant=…] [--new-account REASON]",
            "plan shows noise, steps and ε of a run before it starts, also with resume=RUN_DIR. ledger shows what a "
            "client's ledger records; --new-account REASON starts a new account for data of other people.",
        ),
        "audit": (
            "fedsvd audit [KEY=VALUE …]",
            "Attack one client with inserted examples, and compare the ε that the attack proves with the claimed one. "
            "All keys of fedsvd train apply; audit.KEY=VALUE sets the attack.",
        ),
        "report": (
            "fedsvd report RUN_OR_SWEEP_DIR… [--to DIR]",
            "Write report.html and report.md on all runs in the directories; --to sets where (default: the directory, "
            "or runs/report for several).",
        ),
        "watch": (
            "fedsvd watch RUN_DIR|CONNECTION [port=PORT] [run=RUN_ID]",
            "Show a run while it is in progress: rounds, accuracy, each client's state, ε, traffic and time, on a page "
            "that only browsers on this machine can open. CONNECTION is a connection to a SuperLink in Flower's "
            "config.toml; run is Flower's ID of the run, by default the newest.",
        ),
        "evaluate": (
            "fedsvd evaluate RUN_DIR [data=… data.KEY=VALUE …] [--best] [--all] [--json] [--device DEVICE]",
            "Evaluate the final model on the run's held-out data, or on all rows of the data that the arguments name. "
            "--best takes the model of the best round instead; --all scores every split of a named data set; --json "
            "prints one JSON object.",
        ),
        "predict": (
            "fedsvd predict RUN_DIR (--text TEXT [--text-pair TEXT] … | --file FILE) [--best] "
            "[--json | --stream] [--device DEVICE] [--batch-size N] [--separator S] [--max-new-tokens N]",
            "Predict the label of each text, or generate an answer to it. FILE is a .csv, .tsv, .jsonl, .parquet or "
            ".arrow file with the run's text column, or a text file with one text per line; with --separator, it is a "
            "table, whatever its suffix; --best "
            "takes the model of the best round; --json prints one JSON object per text; --stream prints answers while "
            "they are generated, which have at most N tokens (48).",
        ),
        "export": (
            "fedsvd export RUN_DIR --to DIR [--merge] [--best]",
            "Write the final model for programs without fedsvd: a PEFT adapter with its tokenizer, or with --merge a "
            "complete model; --best takes the model of the best round. docs/models.md says which library loads which "
            "export.",
        ),
        "doctor": (
            "fedsvd doctor [certs=DIR] [superlink=HOST:PORT] [ledger=FILE] [runs=DIR] [node='NODE_CONFIG' KEY=VALUE …]",
            "Check this machine, and what the arguments name, and suggest fixes. node checks a node's configuration "
            "and its data file under the given settings of a run.",
        ),
        "trainer": (
            "fedsvd trainer socket=PATH",
            "Start the process that answers a node's messages before the first message arrives, and keep one until "
            'Ctrl-C. trainer="PATH" in the node configuration names its socket. Without it, the first message of a run '
            "starts a trainer. docs/deployment.md has the details.",
        ),
    }
)


def command_usage(command: str) -> str:
    """Return the usage of a command on one line, for an error message."""
    return _COMMANDS[command][0].replace("\n      ", " |")


def command_help(command: str) -> str:
    """Return what ``fedsvd COMMAND --help`` prints."""
    usage, description = _COMMANDS[command]
    paragraph = textwrap.fill(description, 100)
    return f"usage: {usage}\n\n{paragraph}\n\nKeys: docs/configuration.md. All commands: fedsvd --help\n"

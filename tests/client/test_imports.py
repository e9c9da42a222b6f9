"""Modules that a client process imports. Flower starts a process for each message, so each message pays for them."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEAVY = frozenset(
    {"datasets", "flwr_datasets", "matplotlib", "opacus", "pandas", "peft", "scipy", "seaborn", "torch", "transformers"}
)
PRIVACY_AND_PLOTS = frozenset({"flwr_datasets", "matplotlib", "opacus", "scipy.signal", "scipy.stats", "seaborn"})

MESSAGES = """
    import sys
    from flwr.app import Context, Message, RecordDict
    from fedsvd.compat.flower import set_message_id, set_task_identity
    from client.app import app
    from fedsvd.secagg import messages

    def send(content, kind, *overrides):
        set_task_identity(1, 7, 2)
        message = Message(content, 2, kind)
        set_message_id(message, "message")
        line = " ".join(["experiment=smoke", "run_dir=" + sys.argv[1], *overrides])
        node_config = {"partition-id": 0, "num-partitions": 2}
        return app(message, Context(7, 2, node_config, RecordDict(), {"overrides": line})).content
"""
QUERY = """
    assert send(RecordDict(), "query.partition").metric_records["metrics"]["partition-id"] == 0
"""
SECURE_SETUP = """
    content = send(messages.request("setup", "session"), "train", "federation.secure_aggregation=true")
    assert messages.read_key(content, "mask-key")
"""
ROUND_WITHOUT_PRIVACY = """
    from fedsvd.config.compose import compose
    from fedsvd.methods import build_method
    from fedsvd.runtime.model import initial_adapter
    from fedsvd.wire import payload, train_messages

    overrides = ["privacy=none", "partition=iid"]
    config, parts = compose(["experiment=smoke", *overrides]), frozenset({"B"})
    factors = payload.pack(initial_adapter(config, build_method(config.method)), parts)
    request = train_messages.train_request(train_messages.TrainTask(1, parts, parts), factors)
    content = send(request, "train", *overrides)
    assert list(train_messages.read_train_reply(content)[1]) == ["B"]
"""


def modules_after(folder: Path, *steps: str) -> set[str]:
    """Run code in a new process and return the modules that are imported at its end."""
    code = "".join(map(textwrap.dedent, steps)) + "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert not done.returncode, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_client_app_is_imported_without_heavy_packages(tmp_path: Path) -> None:
    # What a process imports that passes its message to a trainer.
    steps = "import client.app, fedsvd.trainer.connection, fedsvd.trainer.settings, fedsvd.wire.train_messages\n"
    assert not modules_after(tmp_path, steps) & (HEAVY | {"hydra", "omegaconf"})


@pytest.mark.slow
def test_messages_without_training_need_no_heavy_packages(tmp_path: Path) -> None:
    assert not modules_after(tmp_path, MESSAGES, QUERY, SECURE_SETUP) & HEAVY


def test_round_without_privacy_needs_neither_opacus_nor_plots(tmp_path: Path) -> None:
    modules = modules_after(tmp_path, MESSAGES, ROUND_WITHOUT_PRIVACY)

    assert "transformers" in modules
    assert not modules & PRIVACY_AND_PLOTS

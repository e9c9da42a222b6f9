"""Nodes whose own data have the labels of tasks other than classification."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_node_data import query_partition, run_nodes

from fedsvd.wire.train_messages import declined_reason

pytestmark = pytest.mark.slow

LABELS = {
    "multi_label_classification": (["a fine film", "dull", "loud"], [["film", "good"], [], ["bad"]]),
    "token_classification": (
        [["Mr.", "Smith", "left"], ["dull"], ["the", "BBC"]],
        [["B-PER", "I-PER", "O"], ["O"], ["O", "B-ORG"]],
    ),
    "regression": (["a fine film", "dull", "loud"], [4.5, 1, "2"]),
}  # fmt: skip
CLASSES = {
    "multi_label_classification": ["data.labels=[bad,film,good]"],
    "token_classification": ["data.labels=[O,B-PER,I-PER,B-ORG]"],
    "regression": ["data.labels=null", "data.label_range=[1,5]"],
}


def write(path: Path, task: str, *more: tuple[Any, Any]) -> str:
    rows = [*zip(*LABELS[task], strict=True), *more]
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows * 6))
    return str(path)


@pytest.mark.parametrize("task", LABELS)
def test_a_run_on_nodes_trains_and_evaluates(task: str, tmp_path: Path) -> None:
    held_out = write(tmp_path / "held_out.jsonl", task)
    nodes = [{"data-path": write(tmp_path / f"{name}.jsonl", task), "share-counts": True} for name in ("a", "b")]
    overrides = [f"model.task={task}", *CLASSES[task], f"data.test_path={held_out}", "train.num_rounds=1"]

    rows = run_nodes(tmp_path / "run", nodes, *overrides, "privacy=dp_sgd")

    assert rows[-1]["clients_used"] == 2
    assert rows[-1]["loss"] is not None
    assert rows[-1]["epsilon"] > 0
    # A label that the run does not know, or that is none, is refused before training.
    wrong = {"regression": ("loud", "high"), "token_classification": (["BBC"], ["B-LOC"])}.get(task, ("loud", ["new"]))
    reply = query_partition({"data-path": write(tmp_path / "c.jsonl", task, wrong)}, *overrides[:-1])
    assert declined_reason(reply.content)

"""Settings that a node's owner fixes, so that no answer of the node depends on single rows."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from node_messages import decline_reason

from client.handlers import answer
from client.node_check import check_node
from fedsvd.compat.flower import parse_node_config, set_task_identity
from fedsvd.config.compose import compose
from fedsvd.errors import NodeDataError
from fedsvd.wire import train_messages

RUN = ["experiment=smoke", "data=node", "federation.weighting=uniform"]
CLASSES = {"labels": "[no,'yes, surely']", "text-column": "note", "label-column": "outcome"}
RANGE = {"label-range": "[0,100]", "text-column": "note", "label-column": "age"}
SETS = {"task": "multi_label_classification", "labels": "[a,b]", "label-separator": "|", "text-column": "note",
        "label-column": "kinds"}  # fmt: skip
CHATS = {"task": "causal_lm", "messages-column": "chat"}
LABELS = "data.labels=[no,'yes, surely']"
CHAT = ["model.task=causal_lm", "data.label_column=null", "data.messages_column=chat"]


def reason(node_config: dict[str, Any], *overrides: str, kind: str = train_messages.PARTITION_QUERY) -> str:
    """Return why a node declines a message; empty if it does not."""
    set_task_identity(1, 7, 2)
    run = {"overrides": shlex.join([*RUN, *overrides])}
    context = Context(7, 2, {"partition-id": 0, **node_config}, RecordDict(), run)
    return train_messages.declined_reason(answer(Message(RecordDict(), 2, kind), context).content) or ""


def write(path: Path, last: dict[str, Any]) -> dict[str, Any]:
    """Write a file whose last row is the given one; return the node's key."""
    row = {"note": "a fine film", "outcome": "no", "age": 30, "kinds": "a", "words": ["a"], "tags": ["no"]}
    row["chat"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [row, {**row, "outcome": "yes, surely"}, {**row, **last}]
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return {"data-path": str(path)}


@pytest.mark.parametrize("kind", [train_messages.PARTITION_QUERY, MessageType.TRAIN])
def test_limits_are_checked_before_the_data_are_read(kind: str, tmp_path: Path) -> None:
    node = {"data-path": str(tmp_path / "absent.jsonl"), "require-privacy": True}
    assert "privacy = none, but this client allows only dp_sgd" in reason(node, LABELS, "privacy=none", kind=kind)


# What a run may not ask, the setting that is refused, and a last row that another answer could depend on.
REFUSED: list[tuple[dict[str, Any], list[str], str, dict[str, Any]]] = [
    (CLASSES, ["data.labels=[no,'yes, surely',rare]"], "data.labels = ", {"outcome": "rare"}),
    (CLASSES, ["data.labels=[rare,no]"], "data.labels = ", {"outcome": "rare"}),
    (CLASSES, [LABELS, "model.task=multi_label_classification"], "model.task = multi_label", {"outcome": "no;no"}),
    (CLASSES, [LABELS, "model.task=token_classification"], "model.task = token", {"note": ["a"], "outcome": ["no"]}),
    (CLASSES, [LABELS, "model.task=causal_lm"], "model.task = causal_lm", {}),
    (CLASSES, [LABELS, "data.text_pair_column=age"], "also reads by text-pair-column, which", {"age": None}),
    ({"labels": CLASSES["labels"]}, [LABELS, "data.text_column=note"], "reads by text-column, label-column", {}),
    (RANGE, ["model.task=regression", "data.label_range=[0,64]"], "data.label_range = [0.0, 64.0]", {"age": 65}),
    (RANGE, ["model.task=regression"], "data.label_range = None", {"age": 200}),
    (RANGE, [LABELS], "model.task = sequence_classification", {}),
    (SETS, ["model.task=multi_label_classification", "data.labels=[a,b,c]"], "data.labels = ", {"kinds": "c"}),
    ({"task": "regression"}, ["model.task=regression", "data.label_range=[0,9]"], "reads by label-range", {"age": 11}),
    (CHATS, [*CHAT, "data.label_column=outcome"], "also reads by label-column", {"outcome": None}),
]  # fmt: skip


@pytest.mark.parametrize(("fixed", "overrides", "message", "last"), REFUSED)
def test_other_settings_are_refused_whatever_the_rows(
    fixed: dict[str, Any], overrides: list[str], message: str, last: dict[str, Any], tmp_path: Path
) -> None:
    nodes = [write(tmp_path / "a.jsonl", {}), write(tmp_path / "b.jsonl", last), {"data-path": "absent.jsonl"}]
    first, *others = [reason({**node, **fixed}, *overrides) for node in nodes]
    assert first.startswith("RunMismatchError: ")
    assert message in first
    assert others == [first, first]


@pytest.mark.parametrize(
    ("fixed", "overrides"),
    [
        (CLASSES, [LABELS, "data.text_column=absent"]),
        (RANGE, ["model.task=regression", "data.label_range=[0,100]"]),
        (SETS, ["model.task=multi_label_classification", "data.labels=[a,b]", "data.label_separator=s"]),
    ],
)
def test_a_run_with_the_fixed_settings_is_accepted(fixed: dict[str, Any], overrides: list[str], tmp_path: Path) -> None:
    assert reason({**write(tmp_path / "a.jsonl", {"kinds": "a|b"}), **fixed}, *overrides) == ""


def test_other_settings_are_refused_in_a_round_too(tmp_path: Path) -> None:
    node = {**write(tmp_path / "a.jsonl", {}), **CLASSES, "ledger": str(tmp_path / "ledger.sqlite")}
    declined = decline_reason(node, [*RUN[1:], "data.labels=[no,other]"])
    assert str(declined).startswith(
        "RunMismatchError: data.labels = ['no', 'other'], but this node accepts only the value"
    )
    assert not (tmp_path / "ledger.sqlite").exists()


def test_a_csv_file_needs_a_fixed_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('note,outcome\na,no\nb,"yes, surely"\n')
    node = {"data-path": str(path), **CLASSES}
    assert "also reads by separator, which" in reason(node, LABELS)
    assert reason({**node, "separator": ","}, LABELS) == ""


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"labels": "no,yes"}, "labels = 'no,yes' is invalid: expected a value of data.labels"),
        ({"labels": "[no,no]"}, "labels = '[no,no]' is invalid"),
        ({"label-range": "[9,1]"}, "label-range = '[9,1]' is invalid: expected a value of data.label_range"),
        ({"label-range": "9"}, "label-range = '9' is invalid"),
        ({"task": "labels"}, "task = 'labels' is invalid: expected one of sequence_classification, "),
        ({"labels": 7}, "labels = 7 is invalid: expected a quoted string"),
    ],
)
def test_invalid_values_are_refused_without_being_sent(fixed: dict[str, Any], message: str, tmp_path: Path) -> None:
    node = {**write(tmp_path / "a.jsonl", {}), **fixed}
    text = " ".join(f"{key}={json.dumps(value)}" for key, value in node.items())
    with pytest.raises(NodeDataError) as caught:
        check_node(f"partition-id=0 {text}", compose([*RUN, LABELS]))
    assert message in str(caught.value)
    assert reason(node, LABELS) == "DataError: this node's own data cannot be used: see the node's log for the reason."


@pytest.mark.parametrize(
    ("columns", "overrides"),
    [
        ({"text-column": "note", "label-column": "outcome"}, [LABELS]),
        ({"text-column": "note"}, ["model.task=regression", "data.label_range=[0.5,100]", "data.label_column=age"]),
        ({}, ["model.task=multi_label_classification", "data.labels=[a,b]", "data.text_column=note",
              "data.label_column=kinds"]),
    ],
)  # fmt: skip
def test_owner_is_told_what_to_fix(columns: dict[str, str], overrides: list[str], tmp_path: Path) -> None:
    node = {"partition-id": 0, **write(tmp_path / "a.jsonl", {}), **columns}
    text, config = " ".join(f"{key}={json.dumps(value)}" for key, value in node.items()), compose([*RUN, *overrides])
    *_, advice = check_node(text, config)
    start, added = advice.split("; to fix what runs may ask, add to the node configuration: ")
    assert start.startswith("whoever submits a run can ask whether single rows")
    fixed = parse_node_config(f"{text} {added}")
    assert check_node(f"{text} {added}", config)[-1].startswith("trainer: ")
    assert reason(fixed, *overrides) == ""
    assert "data.max_train" not in reason(fixed, *overrides, "data.max_train_examples=2")

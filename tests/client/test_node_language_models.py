"""Language models on nodes' own files: conversations, prompts with answers, and plain text."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from chat_model import save_chat_model
from flwr.app import Context, RecordDict
from test_node_data import query_partition, write

from client.node_data import with_node_data
from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.errors import DataError
from fedsvd.launch import load_apps
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.runs.folder import read_rows
from fedsvd.wire.train_messages import declined_reason

SECRET = "patient 12"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": f"How is {SECRET}?"},
    {"role": "assistant", "content": "Well."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Well."},
]
NODE = ["experiment=smoke", "data=node", "model=tiny_llama", "data.label_column=null"]
MESSAGES = "data.messages_column=messages"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"model.source={save_chat_model(tmp_path_factory.mktemp('model'))}"


def chats(count: int, column: str = "messages") -> list[dict[str, Any]]:
    return [{column: CHAT[:1] + CHAT[1:] * (1 + number % 2)} for number in range(count)]


@pytest.mark.slow
def test_nodes_learn_from_their_own_conversations(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        {"data-path": str(write(tmp_path / "a.jsonl", [*chats(24), {"messages": CHAT[:2]}]))},
        {"data-path": str(write(tmp_path / "b.parquet", chats(30, "chat"))), "messages-column": "chat"},
    ]
    held_out = write(tmp_path / "held_out.jsonl", chats(4))
    overrides = [*NODE, model, MESSAGES, f"data.test_path={held_out}", "federation.weighting=uniform", "plots=false"]
    overrides += [f"run_dir={tmp_path / 'run'}", "train.learning_rate=3", "train.num_rounds=3", "privacy=none"]
    server_app, client_app = load_apps()
    grid = InProcessGrid(client_app, 2, {"overrides": " ".join(overrides)})
    for context, node_config in zip(grid._contexts.values(), nodes, strict=True):
        context.node_config.update(node_config)
    server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {"overrides": " ".join(overrides)}))

    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["clients_used"] for row in rows] == [0, 2, 2, 2]
    assert rows[-1]["perplexity"] < 0.9 * rows[0]["perplexity"]
    assert "1 of 25 rows are left out: 1 with no assistant turn (row 25)" in caplog.text
    assert json.loads((tmp_path / "run" / "samples.json").read_text())[0]["expected"] == "Well."
    capsys.readouterr()

    assert main(["evaluate", str(tmp_path / "run"), f"data.test_path={held_out}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] == pytest.approx(rows[-1]["perplexity"], rel=1e-4)
    questions = write(tmp_path / "questions.jsonl", [{"messages": CHAT[:2]}, {"messages": CHAT}])
    assert main(["predict", str(tmp_path / "run"), "--file", str(questions), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["messages"] for answer in answers] == [CHAT[:2], CHAT[:-1]]
    assert main(["predict", str(tmp_path / "run"), "--text", f"How is {SECRET}?"]) == 0
    assert SECRET in capsys.readouterr().out


def test_node_checks_its_conversations_before_the_run(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    language_model = [*NODE[2:], "data.labels=null", "train.head=frozen", model, MESSAGES]
    wrong = [{**CHAT[0], "content": SECRET, "role": "doctor"}, *CHAT[1:]]
    site = write(tmp_path / "site.jsonl", [*chats(2), {"messages": wrong}])
    with caplog.at_level(logging.INFO):
        reply = query_partition({"data-path": str(site)}, *language_model)
    reason = declined_reason(reply.content)
    assert reason is not None
    assert "see the node's log" in reason
    assert "doctor" not in reason
    assert "row 3: column 'messages' holds the role 'doctor' in turn 1" in caplog.text

    with caplog.at_level(logging.INFO):
        reply = query_partition({"data-path": str(write(site, chats(3)))}, *language_model)
    assert declined_reason(reply.content) is None
    assert "own data: rows: 3" in caplog.text


@pytest.mark.parametrize(
    ("key", "run"),
    [
        ("text-column", MESSAGES),
        ("messages-column", "data.response_column=answer"),
        ("label-column", "data.text_column=note"),
        ("text-pair-column", "data.response_column=answer"),
        ("text-pair-column", "data.label_column=label"),
    ],
)
def test_node_cannot_name_a_column_that_the_run_does_not_read(key: str, run: str) -> None:
    node_config = {"partition-id": 0, "data-path": "/own.jsonl", key: "diagnosis"}
    with pytest.raises(DataError, match=f"has {key}, but the run reads no such column") as caught:
        with_node_data(compose([*NODE, run]), node_config)
    assert "diagnosis" not in str(caught.value)


def test_node_names_the_columns_of_its_answers() -> None:
    node_config = {"data-path": "/own.jsonl", "text-column": "question", "response-column": "reply"}
    data = with_node_data(compose([*NODE, "data.response_column=answer"]), node_config).data
    assert (data.path, data.text_column, data.response_column) == ("/own.jsonl", "question", "reply")


def test_node_names_the_second_texts_of_a_run_that_reads_pairs() -> None:
    run = [*NODE, "data.response_column=answer", "data.text_pair_column=context"]
    node_config = {"data-path": "/own.jsonl", "text-pair-column": "source"}
    for template in ("data.prompt_template='{text} {text_pair}'", "data.prompt_template='{text}'"):
        assert with_node_data(compose([*run, template]), node_config).data.text_pair_column == "source"

"""Nodes with their own data: what they check, log, and disclose to the server."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas
import pytest
from flwr.app import Context, Message, RecordDict
from node_messages import decline_reason

from client.app import app
from fedsvd.config.compose import compose
from fedsvd.data import load
from fedsvd.data.node_data import load_node_file
from fedsvd.data.user_data import Columns
from fedsvd.errors import ConfigError, NodeDataError, RunError
from fedsvd.launch import check_config, load_apps
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.runs.folder import read_rows
from fedsvd.wire import train_messages

SECRET = "the patient in room 12"
ROWS = [{"text": f"{SECRET} is {mood}, case {n}", "label": mood} for n in range(12) for mood in ("well", "ill")]
NODE = ["experiment=smoke", "plots=false", "data=node", "data.labels=[ill,well]", "privacy=none", "train.head=private"]
COLUMNS = Columns("text", None, "label", None)
# What a node that does not disclose its number of examples needs to accept the query of a run.
QUERY = ["federation.num_clients=1", "federation.weighting=uniform"]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    frame = pandas.DataFrame(rows)
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".parquet":
            frame.to_parquet(path)
    return path


def run_nodes(folder: Path, node_configs: list[Mapping[str, Any]], *overrides: str) -> list[dict[str, Any]]:
    """Run both apps in this process, with the given node configurations."""
    run_overrides = " ".join([*NODE, f"federation.num_clients={len(node_configs)}", f"run_dir={folder}", *overrides])
    server_app, client_app = load_apps()
    grid = InProcessGrid(client_app, len(node_configs), {"overrides": run_overrides})
    for context, node_config in zip(grid._contexts.values(), node_configs, strict=True):
        context.node_config.update(node_config)
    server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {"overrides": run_overrides}))
    return read_rows(folder / "metrics.jsonl")


def query_partition(node_config: dict[str, Any], *overrides: str) -> Message:
    """Send one node the partition query, as the server does before a run."""
    grid = InProcessGrid(app, 1, {"overrides": " ".join([*NODE, *QUERY, *overrides])})
    [context] = grid._contexts.values()
    context.node_config.update(node_config)
    query = Message(RecordDict(), context.node_id, train_messages.PARTITION_QUERY, group_id="0")
    [reply] = grid.send_and_receive([query])
    return reply


def declined(reply: Message) -> str:
    """Return why a node cannot take part."""
    reason = train_messages.declined_reason(reply.content)
    assert reason is not None
    return reason


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_all_file_formats_give_the_same_rows(suffix: str, tmp_path: Path) -> None:
    dataset = load_node_file(str(write(tmp_path / f"site.{suffix}")), COLUMNS, ["ill", "well"])
    assert dataset["text"] == [row["text"] for row in ROWS]
    assert dataset["label"] == [int(row["label"] == "well") for row in ROWS]
    assert dataset.features["label"].names == ["ill", "well"]


def test_numeric_labels_stay_integers_next_to_an_empty_cell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"text": "a", "label": 0},
        {"text": "b", "label": None},
        {"text": "", "label": 1},
        {"text": "d", "label": 1},
    ]
    dataset = load_node_file(str(write(tmp_path / "site.csv", rows)), COLUMNS, ["0", "1"])
    assert (dataset["text"], dataset["label"]) == (["a", "d"], [0, 1])
    assert "2 of 4 rows are left out: 1 with no label (row 3); 1 with no text (row 4)" in caplog.text


INVALID_FILES: list[tuple[str, list[dict[str, Any]], list[str]]] = [
    ("site.csv", [{"note": "a", "label": "ill"}], ["no column 'text'", "it has note, label", "text-column"]),
    (
        "site.jsonl",
        [{"text": "a", "label": "dead"}, ROWS[0]],
        ["does not know: dead", "1 of 2 rows (rows 1)", "ill, well"],
    ),
    ("site.parquet", [{"text": "", "label": "ill"}], ["no usable row"]),
]


@pytest.mark.parametrize(("name", "rows", "phrases"), INVALID_FILES)
def test_error_describes_what_is_wrong_with_a_file(
    name: str, rows: list[dict[str, Any]], phrases: list[str], tmp_path: Path
) -> None:
    with pytest.raises(NodeDataError) as caught:
        load_node_file(str(write(tmp_path / name, rows)), COLUMNS, ["ill", "well"])
    assert str(tmp_path / name) in str(caught.value)
    for phrase in phrases:
        assert phrase in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"), [("away.csv", "does not exist"), ("site.docx", "unsupported format; use csv, jsonl")]
)
def test_unreadable_file_raises(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(NodeDataError, match=message):
        load_node_file(str(tmp_path / name), COLUMNS, ["ill", "well"])


def test_server_has_only_the_classes_and_its_held_out_texts(tmp_path: Path) -> None:
    config = compose([*NODE, f"data.test_path={write(tmp_path / 'held_out.csv')}"])
    splits = load(config.data, 0)
    assert (len(splits["train"]), len(splits["test"])) == (0, len(ROWS))
    assert splits["train"].features["label"].names == ["ill", "well"]


def test_nodes_train_on_their_own_files_with_any_column_names(tmp_path: Path) -> None:
    renamed = [{"note": row["text"], "outcome": row["label"]} for row in ROWS[:10]]
    nodes = [
        {"data-path": str(write(tmp_path / "a.csv")), "share-counts": True},
        {"data-path": str(write(tmp_path / "b.parquet", renamed)), "share-counts": True,
         "text-column": "note", "label-column": "outcome"},
    ]  # fmt: skip
    rows = run_nodes(tmp_path / "run", nodes, f"data.test_path={write(tmp_path / 'held_out.jsonl')}")
    assert [row["clients_used"] for row in rows] == [0, 2, 2]
    assert all(row["accuracy"] is not None for row in rows)


@pytest.mark.slow
def test_counts_are_not_disclosed_by_default(tmp_path: Path) -> None:
    private = {"ledger": str(tmp_path / "ledger"), "max-epsilon": 9.0, "max-delta": 1e-5}
    nodes = [{"data-path": str(write(tmp_path / "a.csv")), **private}]
    overrides = ["privacy=dp_sgd", "train.num_rounds=1"]
    with pytest.raises(RunError, match="share-counts = false"):
        run_nodes(tmp_path / "refused", nodes, *overrides)
    assert len(read_rows(tmp_path / "refused" / "metrics.jsonl")) == 1
    assert not (tmp_path / "ledger").exists()

    accepted = run_nodes(tmp_path / "accepted", nodes, "federation.weighting=uniform", *overrides)[1]
    assert accepted["clients_used"] == 1
    [spent] = json.loads((tmp_path / "accepted" / "privacy.json").read_text())["clients"].values()
    assert spent["num_examples"] is spent["sample_rate"] is spent["noise_multiplier"] is None
    assert spent["epsilon"] > 0


def test_run_without_held_out_texts_trains_and_records_no_accuracy(tmp_path: Path) -> None:
    nodes = [{"data-path": str(write(tmp_path / "a.csv")), "share-counts": True}]
    rows = run_nodes(tmp_path / "run", nodes, "train.num_rounds=1", "plots=true")
    assert [row["accuracy"] for row in rows] == [None, None]
    assert rows[1]["clients_used"] == 1
    assert (tmp_path / "run" / "plots" / "accuracy.png").exists()


def test_uniform_weighting_does_not_use_counts(tmp_path: Path) -> None:
    sizes = {"a": ROWS, "b": ROWS[:4]}
    nodes = [{"data-path": str(write(tmp_path / f"{name}.csv", rows))} for name, rows in sizes.items()]
    row = run_nodes(tmp_path / "run", nodes, "federation.weighting=uniform", "train.num_rounds=1")[1]
    assert row["clients_used"] == 2


def test_node_rejects_invalid_data_before_the_run_and_logs_details_locally(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = write(tmp_path / "site.csv", [{"text": SECRET, "label": "deceased"}, *ROWS])
    with caplog.at_level(logging.INFO):
        reason = declined(query_partition({"data-path": str(site)}))
    assert "this node's own data cannot be used: see the node's log for the reason" in reason
    for private in (SECRET, "deceased", str(site)):
        assert private not in reason
    assert "does not know: deceased" in caplog.text
    # The owner may let the server have the words.
    assert "does not know: deceased" in declined(query_partition({"data-path": str(site), "share-errors": True}))

    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert train_messages.declined_reason(query_partition({"data-path": str(write(site))}).content) is None
    assert "own data: label counts: ill = 12, well = 12" in caplog.text


def test_unexpected_error_does_not_disclose_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError(f"cannot tokenize {SECRET}")

    monkeypatch.setattr("client.handlers.check_node_data", fail)
    node = {"data-path": str(write(tmp_path / "site.csv"))}
    reason = declined(query_partition(node))
    assert "ValueError on this node: see the node's log for the details" in reason
    assert SECRET not in reason
    assert SECRET in caplog.text
    assert f"ValueError on this node: cannot tokenize {SECRET}" in declined(
        query_partition({**node, "share-errors": True})
    )


@pytest.mark.parametrize("error", [NodeDataError, ValueError])
def test_error_in_a_round_does_not_disclose_the_data(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error(f"cannot tokenize {SECRET}")

    monkeypatch.setattr("client.local_round.load_client_data", fail)
    node = {"data-path": str(write(tmp_path / "site.csv"))}
    run = [*NODE[1:], "train.head=frozen", "federation.weighting=uniform"]
    reason = str(decline_reason(node, run))
    assert "see the node's log for the" in reason
    assert SECRET not in reason
    assert SECRET in str(decline_reason({**node, "share-errors": True}, run))


def test_simulated_clients_cannot_have_their_own_data() -> None:
    with pytest.raises(ConfigError, match="data=node needs nodes"):
        check_config(compose(NODE))


@pytest.mark.slow
def test_personal_model_is_evaluated_only_on_held_out_texts_of_the_node(tmp_path: Path) -> None:
    site = {"data-path": str(write(tmp_path / "a.csv")), "share-counts": True}
    others = [{"text": f"another is {mood}", "label": mood} for mood in ("well", "ill")]
    held_out = {"test-path": str(write(tmp_path / "t.csv", others))}
    overrides = ["method=fedsa_lora", "train.num_rounds=1"]
    assert run_nodes(tmp_path / "without", [site], *overrides)[1]["accuracy"] is None
    assert run_nodes(tmp_path / "with", [site | held_out], *overrides)[1]["accuracy"] is not None


def test_control_characters_of_the_data_are_escapes_in_the_nodes_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = write(tmp_path / "site.jsonl", [{"text": "a", "label": "ill\x1b[31m"}, *ROWS])
    assert "cannot be used" in declined(query_partition({"data-path": str(site)}))
    [message] = [record.getMessage() for record in caplog.records if "own data" in record.getMessage()]
    assert r"ill\x1b[31m" in message
    assert "\x1b" not in message

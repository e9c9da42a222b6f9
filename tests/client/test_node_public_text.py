"""Public text on nodes: never a node's own file, and no answer about any other file of a node."""

import logging
import os
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from test_node_data import declined, query_partition

from client.node_data import hide_private_details, with_node_data
from fedsvd.config.compose import compose
from fedsvd.data.public_text import load_public_text
from fedsvd.errors import ConfigError, DataError, PublicTextError

STANDARDIZED = [
    "experiment=smoke", "train.head=private", "model.standardize=public", "data=node", "data.labels=[ill,well]",
]  # fmt: skip


@pytest.mark.parametrize("notation", ["the same", "another notation", "a symbolic link", "a hard link"])
def test_a_node_refuses_its_own_data_as_public_text_however_the_run_names_it(notation: str, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "a secret", "label": "ill"}\n')
    names = {
        "the same": str(own),
        "another notation": f"{tmp_path}/../{tmp_path.name}//own.jsonl",
        "a symbolic link": str(tmp_path / "linked.jsonl"),
        "a hard link": str(tmp_path / "hard.jsonl"),
    }
    Path(names["a symbolic link"]).symlink_to(own)
    os.link(own, names["a hard link"])
    config = compose([*STANDARDIZED, f"model.public_text={names[notation]}"])

    for node in ({"data-path": str(own)}, {"data-path": "other.csv", "test-path": str(own)}):
        with pytest.raises(PublicTextError, match="own data are the same text"):
            with_node_data(config, node)


def test_an_own_file_of_a_run_is_compared_as_well(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("text,label\na secret,ill\n")
    (tmp_path / "public.csv").symlink_to(tmp_path / "own.csv")
    own = ["data=csv", f"data.path={tmp_path / 'own.csv'}", f"model.public_text={tmp_path / 'public.csv'}"]
    with pytest.raises(ConfigError, match="own data are the same text"):
        compose([*STANDARDIZED[:3], *own])


@pytest.mark.parametrize("guess", ["own.csv", "test.csv", "absent.csv", "other.csv"])
def test_a_run_cannot_find_out_the_names_of_a_nodes_files(
    guess: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("own.csv", "test.csv", "other.csv"):
        (tmp_path / name).write_text("text,label\na secret,ill\nanother,well\n")
    node = {"data-path": str(tmp_path / "own.csv"), "test-path": str(tmp_path / "test.csv")}
    overrides = ["privacy=none", "model.standardize=public", f"model.public_text={tmp_path / guess}"]

    hidden = "DataError: model.public_text cannot be used on this node: see the node's log for the reason."
    assert declined(query_partition(node, *overrides)) == hidden
    assert str(tmp_path / guess) in caplog.text
    assert str(tmp_path / guess) in declined(query_partition({**node, "share-errors": True}, *overrides))


def test_a_setting_of_a_node_that_no_run_can_have_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("text,label\na,ill\n")
    node = {"data-path": str(tmp_path / "own.csv"), "separator": '"'}

    assert declined(query_partition(node)) == (
        "DataError: this node's own data cannot be used: see the node's log for the reason."
    )
    shared = declined(query_partition({**node, "share-errors": True}))
    assert "node configuration: data.separator = '\"' is invalid" in shared


@pytest.mark.parametrize("content", [None, "", "one text\n"])
def test_a_node_with_its_own_data_says_nothing_about_a_file_that_a_run_names(
    content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "any.txt"
    if content is not None:
        path.write_text(content)

    def answer(**node_config: str | bool) -> str:
        with pytest.raises(DataError) as caught, hide_private_details(Context(1, 1, node_config, RecordDict(), {})):
            load_public_text(str(path))
        return str(caught.value)

    with caplog.at_level(logging.ERROR):
        assert answer(**{"data-path": "own.csv"}) == (
            "model.public_text cannot be used on this node: see the node's log for the reason."
        )
    assert str(path) in caplog.text
    with pytest.raises(PublicTextError):
        load_public_text(str(path))
    assert str(path) in answer()
    assert str(path) in answer(**{"data-path": "own.csv", "share-errors": True})

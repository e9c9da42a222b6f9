"""What the server learns of an error on a node with its own data: its class, unless its message is free of data."""

import copy
import logging
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from node_messages import decline_reason
from test_node_data import declined, query_partition

from client.node_data import FREE_OF_DATA, hide_private_details
from fedsvd import errors
from fedsvd.data.chat import encode_conversation
from fedsvd.errors import DataError, FedSVDError, describe
from fedsvd.models.loading import load_tokenizer

SECRET = "the patient in room 12"
RUN = ["data=node", "data.labels=[ill,well]", "privacy=none", "federation.weighting=uniform"]
ANSWERS_WITHOUT_WORDS = [errors.StaleCacheError]
CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, FedSVDError) and value not in ANSWERS_WITHOUT_WORDS
]


def node_context(**node_config: str | bool) -> Context:
    return Context(1, 1, node_config, RecordDict(), {})


@pytest.mark.parametrize("error", [*CLASSES, KeyError, type("NewError", (errors.ConfigError,), {})])
def test_an_error_that_is_not_known_to_be_free_of_data_is_hidden(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise error(f"cannot use {SECRET}")

    monkeypatch.setattr("client.local_round.check_run", fail)
    node = {"data-path": "own.csv"}
    reason = str(decline_reason(node, RUN))

    assert (SECRET in reason) == (error in FREE_OF_DATA)
    if error not in FREE_OF_DATA:
        assert "see the node's log for the" in reason
        assert SECRET in caplog.text
        assert SECRET in str(decline_reason({**node, "share-errors": True}, RUN))


def test_a_chat_template_of_the_run_cannot_quote_a_conversation(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = copy.copy(load_tokenizer("embedded:tiny-llama"))
    tokenizer.chat_template = "{{ raise_exception(messages[0]['content']) }}"
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(DataError) as caught,
        hide_private_details(node_context(**{"data-path": "own.jsonl"})),
    ):
        encode_conversation([{"role": "user", "content": SECRET}], tokenizer, 100)
    assert describe(caught.value) == (
        "DataError: this node's own data cannot be used: see the node's log for the reason."
    )
    assert SECRET in caplog.text


def test_the_words_of_errors_of_public_data_are_sent() -> None:
    with pytest.raises(DataError, match=SECRET), hide_private_details(node_context()):
        raise DataError(SECRET)


@pytest.mark.parametrize("place", ["client.secure_aggregation.answer_stage", "client.handlers.client_identity"])
def test_an_unexpected_error_outside_the_local_round_is_hidden(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError(f"cannot use {SECRET}")

    monkeypatch.setattr(place, fail)
    node = {"data-path": str(tmp_path / "own.csv")}
    hidden = "ValueError on this node: see the node's log for the details."
    secure = ["federation.secure_aggregation=true", "federation.min_survivors=2"]
    assert decline_reason(node, [*RUN, *secure]) == f"DataError: {hidden}"
    if "handlers" in place:
        assert declined(query_partition(node)) == f"DataError: {hidden}"

"""The ClientApp: it passes messages to a trainer only in a process that Flower has started for one message."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

import client.app
from client.node_check import check_node
from fedsvd.compat.flower import set_task_identity
from fedsvd.config.compose import compose
from fedsvd.errors import LimitError, TrainerError
from fedsvd.trainer.settings import TrainerSettings
from fedsvd.wire import train_messages

BY_TRAINER, BY_HANDLER = (RecordDict({"by": ConfigRecord({"name": name})}) for name in ("trainer", "handler"))


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace what would answer; return how the trainer was called."""
    calls: dict[str, Any] = {}

    def answer_by_trainer(
        message: Message, context: Context, settings: TrainerSettings, bundle: Path, handler: str
    ) -> Message:
        calls.update(settings=settings, bundle=bundle, handler=handler)
        return Message(BY_TRAINER, reply_to=message)

    def answer(message: Message, context: Context) -> Message:
        return Message(BY_HANDLER, reply_to=message)

    monkeypatch.setattr("fedsvd.trainer.connection.answer", answer_by_trainer)
    monkeypatch.setattr("client.handlers.answer", answer)
    return calls


def send(kind: str, node_config: Mapping[str, Any]) -> RecordDict:
    set_task_identity(1, 7, 2)
    context = Context(7, 2, {"partition-id": 0, **node_config}, RecordDict(), {"overrides": "experiment=smoke"})
    return client.app.app(Message(RecordDict(), 2, kind), context).content


@pytest.mark.parametrize("kind", ["train", train_messages.PARTITION_QUERY])
def test_trainer_answers_for_a_process_of_one_message(
    kind: str, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert send(kind, {}) == BY_HANDLER
    monkeypatch.setattr("sys.argv", ["/opt/venv/bin/flwr-clientapp", "--insecure"])
    assert send(kind, {"trainer": "none"}) == BY_HANDLER
    assert not answers
    assert send(kind, {"trainer-idle-s": 5}) == BY_TRAINER
    assert answers["settings"].idle_s == 5
    assert (answers["bundle"] / "client" / "handlers.py").is_file()
    assert answers["handler"] == "client.handlers:answer"


def test_only_flowers_program_for_one_message_uses_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flwr-simulation", "default_worker.py", "pytest", "flwr-clientapp.py", ""):
        monkeypatch.setattr("sys.argv", [name])
        assert not client.app.is_started_for_one_message()
    monkeypatch.setattr("sys.argv", ["flwr-clientapp"])
    assert client.app.is_started_for_one_message()


def test_message_without_a_trainer_is_declined_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Message:
        raise TrainerError("it ended by signal 9.")

    monkeypatch.setattr("sys.argv", ["flwr-clientapp"])
    reason = train_messages.declined_reason(send("train", {"trainer": "maybe"}))
    assert str(reason).startswith("LimitError: node configuration: trainer = 'maybe' is invalid")
    with pytest.raises(LimitError, match="trainer = 'maybe'"):
        send(train_messages.PARTITION_QUERY, {"trainer": "maybe"})
    monkeypatch.setattr("fedsvd.trainer.connection.answer", fail)
    assert train_messages.declined_reason(send("train", {})) == "TrainerError: it ended by signal 9."
    with pytest.raises(TrainerError, match="ended by signal 9"):
        send(train_messages.PARTITION_QUERY, {})


def test_owner_learns_of_invalid_settings_before_the_node_joins() -> None:
    config = compose(["experiment=smoke"])
    with pytest.raises(LimitError, match="trainer = 'off' is invalid"):
        check_node('partition-id=0 trainer="off"', config)
    with pytest.raises(LimitError, match=r"trainer-idle is not a known key \(did you mean trainer-idle-s"):
        check_node("partition-id=0 trainer-idle=5", config)
    *_, line = check_node('partition-id=0 trainer="/none/a.sock" trainer-idle-s=5', config)
    assert line == "trainer: /none/a.sock, where none listens now: start it with fedsvd trainer socket=/none/a.sock"

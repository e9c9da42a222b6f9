"""The partition query: how long it lives, and what is sent again to a node that crashes."""

from collections.abc import Iterable

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsvd.compat.flower import ErrorCode
from fedsvd.config.compose import compose
from fedsvd.errors import RunError
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.wire.partition_query import partition_query, read_account
from fedsvd.wire.train_messages import PARTITION_QUERY, partition_reply
from server.clients import Clients
from server.polling_grid import PollingGrid
from server.retry_grid import RetryGrid

TIMEOUT_S = 0.3
FEDERATION = compose(
    ["experiment=smoke", "federation.num_clients=1", f"federation.connect_timeout_s={TIMEOUT_S}"]
).federation


class Node(InProcessGrid):
    """A grid of one node, which answers its messages with ``answers`` in turn, and then with none."""

    def __init__(self, *answers: RecordDict | Error) -> None:
        super().__init__(ClientApp(), 1, {})
        self.answers = list(answers)
        self.pushed: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        self.pushed += sent
        return super().push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if not self.answers:
            return []
        [message_id] = message_ids
        return [Message(self.answers.pop(0), reply_to=self._pending.pop(message_id))]  # type: ignore[arg-type]


def test_a_query_lives_as_long_as_the_server_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    with pytest.raises(RunError, match="start the clients"):
        Clients(FEDERATION).refresh(PollingGrid(node))
    assert [message.metadata.ttl for message in node.pushed] == [TIMEOUT_S]
    assert f"no reply within {TIMEOUT_S:g} s (federation.connect_timeout_s)" in caplog.text


def test_a_query_whose_client_crashed_is_sent_again_as_it_was() -> None:
    node = Node(Error(ErrorCode.CLIENT_APP_CRASHED, "killed"), partition_reply(0, ""))
    [number] = node.get_node_ids()
    query = Message(partition_query("a run"), number, PARTITION_QUERY, group_id="0", ttl=30.0)

    def train_request(message: Message) -> Message:
        return Message(RecordDict(), number, "train", group_id="0", ttl=30.0)

    grid = RetryGrid(PollingGrid(node), train_request, retries=1, retry_after_s=0.01)
    [reply] = grid.send_and_receive([query], timeout=20)

    assert not reply.has_error()
    resent = node.pushed[1]
    assert (resent.metadata.message_type, resent.metadata.group_id) == (PARTITION_QUERY, "0")
    assert read_account(resent.content) == "a run"
    assert resent.metadata.ttl < 20

"""A federation in one process, through Flower's public Grid interface, with one base model in memory."""

from __future__ import annotations

import copy
import secrets
import uuid
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsvd.compat.flower import SUPERLINK_NODE_ID, ErrorCode, Run, set_message_id, set_task_identity
from fedsvd.errors import describe


class InProcessGrid(Grid):
    """Deliver each message by calling the ClientApp when its reply is pulled, one message at a time.

    Each call receives copies of message and context, as over a network, and changes to the context are stored only if
    the call succeeds. An exception becomes the error reply that Flower's own backends send.

    Args:
        client_app: The app that every node runs.
        num_nodes: Number of nodes; node i (0 … ``num_nodes`` - 1) holds partition i.
        run_config: The run configuration in every node's context.
    """

    def __init__(self, client_app: ClientApp, num_nodes: int, run_config: UserConfig) -> None:
        self._client_app = client_app
        run_id = secrets.randbits(62)
        set_task_identity(1, run_id, SUPERLINK_NODE_ID)
        self._run = Run.create_empty(run_id)
        self._contexts = {
            SUPERLINK_NODE_ID + 1 + index: Context(
                run_id,
                SUPERLINK_NODE_ID + 1 + index,
                {"partition-id": index, "num-partitions": num_nodes},
                RecordDict(),
                dict(run_config),
            )
            for index in range(num_nodes)
        }
        self._pending: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The current run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the IDs of all nodes; all are always available."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their IDs; they are delivered when pulled."""
        ids = []
        for message in messages:
            set_message_id(message, uuid.uuid4().hex)
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Deliver the oldest queued message among ``message_ids`` and return its reply."""
        requested = set(message_ids)
        for message_id in list(self._pending):
            if message_id in requested:
                return [self._deliver(self._pending.pop(message_id))]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver all messages and return their replies; ``timeout`` is ignored, since calls are synchronous."""
        return [reply for message_id in self.push_messages(messages) for reply in self.pull_messages([message_id])]

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = copy.deepcopy(self._contexts[node])
        try:
            reply = self._client_app(copy.deepcopy(message), context)
            self._contexts[node] = context
        except Exception as error:  # As in Flower, any exception of a ClientApp becomes an error reply.
            reason = describe(error)
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        set_message_id(reply, uuid.uuid4().hex)
        return reply


def run_local(server_app: ServerApp, client_app: ClientApp, num_nodes: int, run_config: UserConfig) -> None:
    """Run a federation of ``num_nodes`` nodes in this process; exceptions of the ServerApp propagate."""
    grid = InProcessGrid(client_app, num_nodes, run_config)
    server_app(grid, Context(grid.run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config)))

"""The private names of Flower that fedsvd uses; no other module uses any.

Public are `flwr.app`, `flwr.clientapp`, `flwr.serverapp` and `flwr.simulation`. The names here can move with any minor
version of Flower, which is therefore pinned; ``tests/unit/compat/test_private_names.py`` tells which one has moved.
"""

from __future__ import annotations

from typing import Any

from flwr.app import Context, Error, Message, MessageType, Metadata
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat, share_keys_plaintext_separate
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_body
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CLIENT_APP_PROCESS",
    "COMMAND_LINE",
    "ErrorCode",
    "Run",
    "SUPERLINK_NODE_ID",
    "combine_shares",
    "context_from_bytes",
    "context_to_bytes",
    "create_shares",
    "current_task_id",
    "decrypt",
    "encrypt",
    "inflate_or_error",
    "message_from_bytes",
    "message_to_bytes",
    "parse_node_config",
    "set_message_id",
    "replace_unreadable_messages",
    "set_task_identity",
    "share_keys_plaintext_concat",
    "share_keys_plaintext_separate",
    "to_objects",
]

# Name of the program that a SuperNode starts for each message.
CLIENT_APP_PROCESS = "flwr-clientapp"
# Code that runs the command line of the flwr that is installed for this interpreter, whatever is first on the PATH.
COMMAND_LINE = "from flwr.cli.app import app; app()"


def message_to_bytes(message: Message) -> bytes:
    """Serialize a message with its metadata, including its ID."""
    serialized: bytes = message_to_proto(message).SerializeToString()
    return serialized


def message_from_bytes(content: bytes) -> Message:
    """Return the message that was serialized."""
    message = message_from_proto(ProtoMessage.FromString(content))
    assert isinstance(message, Message)  # noqa: S101
    return message


def context_to_bytes(context: Context) -> bytes:
    """Serialize a context with its state."""
    serialized: bytes = context_to_proto(context).SerializeToString()
    return serialized


def context_from_bytes(content: bytes) -> Context:
    """Return the context that was serialized."""
    context = context_from_proto(ProtoContext.FromString(content))
    assert isinstance(context, Context)  # noqa: S101
    return context


def to_objects(message: Message) -> tuple[str, dict[str, bytes]]:
    """Return a message as Flower sends it: its ID, and the bytes of its parts by their IDs."""
    return message.object_id, {key: part.deflate() for key, part in get_all_nested_objects(message).items()}


def inflate_or_error(object_id: str, contents: dict[str, bytes]) -> Message:
    """Return the message that was sent, or an error message in its place if its parts cannot be read.

    Args:
        object_id: ID of the message.
        contents: The bytes of its parts by their IDs; emptied, as Flower does.
    """
    content = contents[object_id]
    try:
        message = inflate_object_from_contents(object_id, contents)
        if isinstance(message, Message):
            return message
        reason = f"a {type(message).__name__} instead of a message"
    except Exception as error:
        # The bytes come from a client, and Flower's parsers fail on them in many ways.
        reason = type(error).__name__
    unreadable = Error(ErrorCode.MOD_FAILED_PRECONDITION, f"the reply cannot be read ({reason})")
    return make_message(_metadata(content), error=unreadable)


def replace_unreadable_messages() -> None:
    """Let Flower's network grid return `inflate_or_error` of each message.

    By itself it raises what its parsers raise, so that one client could end the run and lose the others' replies.
    """
    from flwr.superlink.grid import http_grid

    http_grid.inflate_object_from_contents = inflate_or_error  # type: ignore[assignment,attr-defined]


def _metadata(content: bytes) -> Metadata:
    """Return the metadata in the bytes of a message; empty if they cannot be read."""
    try:
        return metadata_from_proto(ProtoMessage.FromString(get_object_body(content, Message)).metadata)
    except Exception:
        return Metadata(0, "", 0, 0, "", "", 0.0, 0.0, MessageType.TRAIN)


def current_task_id() -> int:
    """Return the ID of the task that Flower has started this process for."""
    return int(TaskIdentity.task_id)


def set_task_identity(task_id: int, run_id: int, node_id: int) -> None:
    """Set the identity that Flower attaches to messages created in this process."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its ID, as Flower does when it sends it."""
    message.metadata.__dict__["_message_id"] = message_id


def parse_node_config(text: str) -> dict[str, Any]:
    """Parse the value of ``flower-supernode --node-config``.

    Raises:
        ValueError: It is neither a list of KEY=VALUE pairs nor a readable TOML file.
    """
    # Flower's command line, which no ClientApp process needs.
    from click import ClickException
    from flwr.common.config import parse_config_args

    try:
        return dict(parse_config_args([text], flatten=False))
    except (ClickException, OSError) as error:
        raise ValueError(str(error)) from error

"""The Flower ClientApp.

On a real node, Flower starts a process for each message. It passes the message to the node's trainer, and imports
neither torch nor anything that does. All other federations answer messages in their own processes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsvd.compat.flower import CLIENT_APP_PROCESS

app = ClientApp()

_HANDLER = "client.handlers:answer"


@app.query("partition")
def partition(message: Message, context: Context) -> Message:
    """Report this node's partition number; see `client.handlers.report_partition`."""
    return _answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the requested parts on this node's data; see `client.handlers.train`."""
    return _answer(message, context)


def is_started_for_one_message() -> bool:
    """Return whether Flower has started this process to answer a single message, as it does on real nodes."""
    return Path(sys.argv[0]).name == CLIENT_APP_PROCESS


def _answer(message: Message, context: Context) -> Message:
    if is_started_for_one_message():
        from fedsvd.errors import LimitError, TrainerError, describe
        from fedsvd.trainer import connection
        from fedsvd.trainer.settings import read_settings

        try:
            settings = read_settings(context.node_config)
            if settings.enabled:
                return connection.answer(message, context, settings, Path(__file__).resolve().parents[1], _HANDLER)
        except (LimitError, TrainerError) as error:
            # The server expects a number in the reply to a query, and logs any error.
            if message.metadata.message_type != "train":
                raise
            from fedsvd.wire import train_messages

            return Message(train_messages.declined_reply(describe(error)), reply_to=message)
    from client.handlers import answer

    return answer(message, context)

"""A ClientApp without a model: its nodes say which partition they hold, and answer a round as they are told to."""

from collections.abc import Callable

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsvd.wire import train_messages

# From a partition's number, what is asked and what came with it, to the reply.
Train = Callable[[int, train_messages.TrainTask, ArrayRecord], RecordDict]


def answering_app(train: Train) -> ClientApp:
    app = ClientApp()

    @app.query("partition")
    def partition(message: Message, context: Context) -> Message:
        return Message(train_messages.partition_reply(int(context.node_config["partition-id"])), reply_to=message)

    @app.train()
    def run(message: Message, context: Context) -> Message:
        task, factors = train_messages.read_train_request(message.content)
        return Message(train(int(context.node_config["partition-id"]), task, factors), reply_to=message)

    return app

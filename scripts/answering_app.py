"""A ClientApp without a model, for tests and benchmarks: a given function computes the reply to each round."""

from collections.abc import Callable

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsvd.wire import train_messages

# (partition id, task, received factors) -> content of the reply
Train = Callable[[int, train_messages.TrainTask, ArrayRecord], RecordDict]


def answering_app(train: Train) -> ClientApp:
    """Return a ClientApp whose nodes report their partition id and reply to each round with the result of ``train``."""
    app = ClientApp()

    @app.query("partition")
    def partition(message: Message, context: Context) -> Message:
        return Message(train_messages.partition_reply(int(context.node_config["partition-id"])), reply_to=message)

    @app.train()
    def run(message: Message, context: Context) -> Message:
        task, factors = train_messages.read_train_request(message.content)
        return Message(train(int(context.node_config["partition-id"]), task, factors), reply_to=message)

    return app

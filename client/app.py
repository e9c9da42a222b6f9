"""The Flower ClientApp: factors in, one local round, factors out."""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.identity import client_identity, read_partition_id
from client.local_round import run_local_round
from client.node_data import check_node_data, hide_private_details, with_node_data
from client.secure_aggregation import answer_stage
from fedsvd.config.compose import from_run_config
from fedsvd.errors import FedSVDError, StaleCacheError
from fedsvd.wire import train_messages

app = ClientApp()


@app.query("partition")
def partition(message: Message, context: Context) -> Message:
    """Tell the server which partition this node holds, so that it can name and order its clients.

    Asked once a run, before all else: where the node's own data do not fit the run, it says so here.

    Raises:
        DataError: They do not; what is wrong with them is in the node's own log.
    """
    config = from_run_config(context.run_config)
    with hide_private_details(context):
        check_node_data(with_node_data(config, context.node_config))
    return Message(train_messages.partition_reply(read_partition_id(context)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the factors asked for on this node's data, within its own budget."""
    try:
        config = from_run_config(context.run_config)
        identity = client_identity(context, config)
        # Before anything is agreed on with others; the round itself looks again.
        identity.limits.check(config)

        def local_round() -> RecordDict:
            task, factors = train_messages.read_train_request(message.content)
            with hide_private_details(context):
                own = with_node_data(config, context.node_config)
                return run_local_round(own, identity, task, factors, message.metadata.message_id, context.state)

        if config.federation.secure_aggregation:
            content = answer_stage(message.content, context.state, context.node_id, config, local_round)
        else:
            content = local_round()
    except StaleCacheError:
        content = train_messages.resend_reply()
    except FedSVDError as error:
        content = train_messages.declined_reply(f"{type(error).__name__}: {error}")
    return Message(content, reply_to=message)

"""Answers to the server's messages: the partition query and local rounds of training."""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict

from client.identity import ClientIdentity, client_identity, read_partition_id
from client.node_data import check_node_data, hide_private_details, with_node_data
from fedsvd.config import Config
from fedsvd.config.run_config import from_run_config
from fedsvd.errors import FedSVDError, LimitError, StaleCacheError, describe
from fedsvd.wire import train_messages
from fedsvd.wire.partition_query import read_account


def answer(message: Message, context: Context) -> Message:
    """Answer a message, in a process that may answer many."""
    if message.metadata.message_type == train_messages.PARTITION_QUERY:
        return report_partition(message, context)
    return train(message, context)


def report_partition(message: Message, context: Context) -> Message:
    """Report this node's partition number, by which the server names and orders its clients.

    The server queries each node once per run, before training. The node checks its configuration, its limits and, if it
    has data of its own, that they fit the run. If the query names an account, a client of the run charges the whole run
    to it. If one of these fails, the reply has the reason, too, and the server leaves the node out. Without
    ``share-errors`` in the node configuration, the details are only in the node's log.
    """
    reason = ""
    try:
        partition_id = read_partition_id(context.node_config)
    except LimitError as error:
        return Message(train_messages.declined_reply(describe(error)), reply_to=message)
    try:
        with hide_private_details(context):
            config = from_run_config(context.run_config)
            # A limit or ledger that has no effect is reported before the first round, not in each round.
            identity = client_identity(context, config)
            # Before the data are read: a run that may not use them learns nothing about them.
            identity.limits.check(config)
            node_run = with_node_data(config, context.node_config)
            check_node_data(node_run)
            account = read_account(message.content)
            # The server ignores a node with another number, and says so.
            if account and partition_id < config.federation.num_clients:
                _charge_before_sampling(node_run, identity, account)
    except FedSVDError as error:
        reason = describe(error)
    return Message(train_messages.partition_reply(partition_id, reason), reply_to=message)


def _charge_before_sampling(config: Config, identity: ClientIdentity, account: str) -> None:
    # Other queries load neither torch nor datasets.
    from client.ledger_charge import charge_whole_run
    from fedsvd.runtime.data import load_fingerprint
    from fedsvd.runtime.run_checks import check_run

    check_run(config)
    if config.privacy.is_charged_in_advance:
        charge_whole_run(config, identity, load_fingerprint(config, identity.partition_id), account)


def train(message: Message, context: Context) -> Message:
    """Train the requested parts on this node's data, within its privacy budget."""
    try:
        with hide_private_details(context):
            content = _train(message, context)
    except StaleCacheError:
        content = train_messages.resend_reply()
    except FedSVDError as error:
        content = train_messages.declined_reply(describe(error))
    return Message(content, reply_to=message)


def _train(message: Message, context: Context) -> RecordDict:
    config = from_run_config(context.run_config)
    identity = client_identity(context, config)
    # Checked before any stage of secure aggregation; `run_local_round` checks again.
    identity.limits.check(config)

    def local_round() -> RecordDict:
        # A process may serve one message only, and few messages train: torch and transformers are loaded for those.
        from client.local_round import run_local_round

        task, factors = train_messages.read_train_request(message.content)
        node_run = with_node_data(config, context.node_config)
        return run_local_round(node_run, identity, task, factors, message.metadata.message_id, context.state)

    if config.federation.secure_aggregation:
        from client.secure_aggregation import answer_stage

        return answer_stage(message.content, context.state, context.node_id, config, local_round)
    return local_round()

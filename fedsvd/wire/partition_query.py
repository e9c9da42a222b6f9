"""The content of the server's partition query, to which `fedsvd.wire.train_messages.partition_reply` is the reply."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from fedsvd.wire.train_messages import TASK


def partition_query(account: str) -> RecordDict:
    """Build the content of the server's partition query.

    Args:
        account: Name of the run in the clients' ledgers, to which each client charges the whole run before it answers,
            see `fedsvd.wire.train_messages.TrainTask`; empty for none.
    """
    return RecordDict({TASK: ConfigRecord({"account": account})}) if account else RecordDict()


def read_account(content: RecordDict) -> str:
    """Return the account in a partition query; empty if it has none."""
    record = content.config_records.get(TASK)
    account = None if record is None else record.get("account")
    return account if isinstance(account, str) else ""

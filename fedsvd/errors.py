"""Every error that fedsvd raises on purpose.

Each message says what was wrong, the value that was given, what is allowed and what to do about it.

::

    FedSVDError
    ├── ConfigError           a key, type or value of the configuration
    ├── DataError             a data set that cannot be had, read or split
    │   ├── AssetError        an embedded package that cannot be fetched or is not what was recorded
    │   └── SiloError         a node's own data, wrong in a way that is its owner's business alone
    ├── ModelError            a model that cannot be loaded, or an adapter that does not fit it
    ├── PrivacyError          a guarantee that cannot be given
    │   ├── BudgetExceededError   this round would spend more than the client allows
    │   ├── LimitError            the run asks for more than the client's own limits allow
    │   ├── LedgerError           the client's record of its spends is damaged or another's
    │   └── ReplayedMessageError  this message was charged before
    ├── AuditError            an audit that contradicts what is claimed
    ├── PayloadError          a message whose arrays are not what was agreed
    │   ├── RunawayError          an update that is not finite, or longer than a run's settings allow
    │   └── LostStateError        a client does not hold what it is taken to hold
    └── RunError              a federation that cannot start, go on or be resumed
"""


class FedSVDError(Exception):
    """Root of the tree: catch it to catch all that fedsvd raises on purpose."""


class ConfigError(FedSVDError):
    """A configuration key, type or value that is not allowed."""


class DataError(FedSVDError):
    """A data set that cannot be had, read or split as asked."""


class AssetError(DataError):
    """An embedded package that cannot be fetched, or whose content is not what was recorded."""


class NodeDataError(DataError):
    """A node's own data that cannot be used; the message may tell of them, and does not leave the node."""


class ModelError(FedSVDError):
    """A model that cannot be loaded, or an adapter that does not fit its model."""


class PrivacyError(FedSVDError):
    """A privacy guarantee that cannot be given."""


class BudgetExceededError(PrivacyError):
    """The steps asked for would spend more than the client's budget; nothing was spent."""


class LimitError(PrivacyError):
    """A run that asks for more than the client's own limits allow, or limits that are not understood."""


class LedgerError(PrivacyError):
    """A ledger that is damaged, cannot be used, or belongs to other data."""


class ReplayedMessageError(PrivacyError):
    """A message whose charge has been used up; nothing was spent."""


class AuditError(FedSVDError):
    """An audit that contradicts what is claimed."""


class PayloadError(FedSVDError):
    """A message whose arrays are not what sender and receiver agreed on."""


class DivergedUpdateError(PayloadError):
    """An update that is not finite, or longer than a run's settings allow: training that diverged, or an attack."""


class StaleCacheError(PayloadError):
    """A client does not hold what the server takes it to hold, and asks for it in full.

    Args:
        what: What it lacks.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"this client does not hold {what} as it is taken to; it asks to be sent it in full.")


class RunError(FedSVDError):
    """A federation that cannot start, go on, or be resumed."""

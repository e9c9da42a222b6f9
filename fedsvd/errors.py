"""The exceptions that fedsvd raises deliberately.

Each message says what was wrong, the value, what is allowed, and what to do.

::

    FedSVDError
    ├── ConfigError               an invalid configuration key, type or value
    │   └── ResumeError           settings or data with which a run cannot be resumed
    ├── DataError                 a data set that cannot be obtained, read or split
    │   ├── AssetError            a packaged file that cannot be fetched or has unexpected content
    │   ├── PublicTextError       a file of public text that cannot be used
    │   ├── RunMismatchError      a run that does not fit a node's settings
    │   └── NodeDataError         invalid node data; the details concern the node's owner alone
    ├── ModelError                a model that cannot be loaded, or an adapter that does not fit it
    ├── PrivacyError              a privacy guarantee that cannot be given
    │   ├── BudgetExceededError   a round or run would exceed the client's budget
    │   ├── LimitError            a run exceeds the client's own limits
    │   ├── LedgerError           a ledger that is damaged or belongs to other data
    │   └── ReplayedMessageError  a message that was charged before
    ├── AuditError                an audit that contradicts the privacy claim
    ├── PayloadError              a message with unexpected arrays
    │   ├── DivergedUpdateError   an update that is not finite, or longer than the run's settings allow
    │   └── StaleCacheError       a client without a state that the server expects it to have
    └── RunError                  a federation that cannot start, continue or be resumed
        ├── DivergedError         training that has diverged
        ├── InUseError            a run directory that another process uses
        ├── TrainerError          a node's trainer that cannot be used, or ended before it replied
        └── StoppedError          a run that the user has stopped

`Interruption` is not an error: it is the `KeyboardInterrupt` of a command that knows what is kept and how to continue.
"""


class FedSVDError(Exception):
    """Base class of all exceptions that fedsvd raises deliberately.

    Example:
        >>> import fedsvd
        >>> try:
        ...     fedsvd.Spend(noise_multiplier=0, sample_rate=0.1, steps=1)
        ... except fedsvd.FedSVDError as error:
        ...     print(error)
        noise_multiplier = 0 is invalid: expected a number > 0.
    """


class ConfigError(FedSVDError):
    """An invalid configuration key, type or value."""


class ResumeError(ConfigError):
    """Settings or data that differ from those of the run to resume; nothing in its directory was changed."""


class DataError(FedSVDError):
    """A data set that cannot be obtained, read or split as configured."""


class AssetError(DataError):
    """A packaged file that cannot be fetched, or whose content differs from the recorded digest."""


class PublicTextError(DataError):
    """A file of public text (``model.public_text``) that cannot be used."""


class RunMismatchError(DataError):
    """A run that does not fit a node's settings. The message quotes settings, and no data, so it may leave the node."""


class NodeDataError(DataError):
    """Data of a node that cannot be used. The message may reveal the data, so it must not leave the node."""


class ModelError(FedSVDError):
    """A model that cannot be loaded, or an adapter that does not fit its model."""


class PrivacyError(FedSVDError):
    """A privacy guarantee that cannot be given."""


class BudgetExceededError(PrivacyError):
    """The requested steps would exceed the client's budget; nothing was charged."""


class LimitError(PrivacyError):
    """A run that exceeds the client's own limits, or limits that are invalid."""


class LedgerError(PrivacyError):
    """A ledger that is damaged, cannot be used, or belongs to other data; or a charge that does not match it."""


class ReplayedMessageError(PrivacyError):
    """A message that was charged before; nothing was charged again."""


class AuditError(FedSVDError):
    """An audit that contradicts the privacy claim."""


class PayloadError(FedSVDError):
    """A message whose content is not what its receiver expects."""


class DivergedUpdateError(PayloadError):
    """An update that is not finite, or longer than the run's settings allow: training diverged, or an attack."""


class StaleCacheError(PayloadError):
    """A client does not have a state that the server expects it to have, and requests it in full.

    Args:
        missing: Name of the missing state.
    """

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"this client does not have the state {missing!r} that the server expects; it requests it in full."
        )


class RunError(FedSVDError):
    """A federation that cannot start, continue or be resumed."""


class DivergedError(RunError):
    """Training that has diverged: a loss, an update or the held-out loss is not finite or too large."""


class InUseError(RunError):
    """A run directory that another process uses."""


class TrainerError(RunError):
    """A node's trainer that cannot be used, or that ended before it replied; see `fedsvd.trainer`."""


class StoppedError(RunError):
    """A run that the user has stopped, for the threads that do not receive the interrupt itself."""


class Interruption(KeyboardInterrupt):
    """An interrupt by the user (Ctrl-C).

    Args:
        kept: What is kept.
        remedy: How to continue.
    """

    def __init__(self, kept: str, remedy: str) -> None:
        super().__init__(kept)
        self.kept = kept
        self.remedy = remedy


def describe(error: BaseException) -> str:
    """Return an error's class and message in one line, as in replies and records."""
    return f"{type(error).__name__}: {error}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")

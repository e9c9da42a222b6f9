"""Content of the messages between server and clients.

This is the only module that defines record names and keys. `fedsvd.wire.payload` packs the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsvd.config.task import METRICS_BY_KEY
from fedsvd.errors import PayloadError
from fedsvd.lora.adapter import PARTS, Part

FACTORS = "factors"
ROTATION, INDICES = ".rotation", ".indices"
TASK = "task"
METRICS = "metrics"
DECLINED = "declined"
RESEND = "lost"
PARTITION_QUERY = "query.partition"
MAX_NUM_EXAMPLES = 2**40
MAX_REASON_LENGTH = 400
VERSIONED = ("A", "B", "base")
_INTEGERS = ("partition_id", "num_examples", "steps", "server_round")
_FRACTIONS = ("sample_rate", "clipped_share")
# Starts the key of a metric of a client's personalized model.
_METRIC = "metric."
_SIGNED = ("train_loss",)


@dataclass(frozen=True)
class TrainTask:
    """One client's task in one round.

    Attributes:
        server_round: 1-based.
        trains: Parts that the client trains.
        uplink: Parts that the client sends back, a subset of ``trains``.
        account: Name of a client-level private run in the clients' ledgers, or of a run with personal factors; the same
            for all processes of the run. Empty for other runs.
        versions: For A, B and the base, the round after which it was last replaced (see `fedsvd.wire.factor_versions`);
            a client compares it with its cache. Of a personal factor, the last round with a reply; 0 for none.
        keep: Those of A, B and the base that the client caches for later rounds.
        base_start: Number of columns of the base that the server assumes to be in the client's cache; the message
            contains only the columns after them.
        evaluate: Whether a client with a personalized model evaluates it after training and adds the result to its
            report. A separate message would start a separate process.
    """

    server_round: int
    trains: frozenset[Part]
    uplink: frozenset[Part]
    account: str = ""
    versions: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(VERSIONED, 0))
    keep: frozenset[str] = frozenset()
    base_start: int = 0
    evaluate: bool = False


@dataclass(frozen=True)
class ClientReport:
    """The numbers that a client sends with its factors.

    Attributes:
        partition_id: The client's number.
        num_examples: Size of the client's data set; treated as public (no noise is added). None if it is not disclosed.
        seconds: Duration of the local round.
        epsilon: ε spent so far at the client's δ, from public quantities only, or rounded up; None without privacy.
        noise_multiplier: σ of DP-SGD; None without privacy.
        sample_rate: Poisson sample rate; None without privacy.
        steps: Noisy steps charged so far; None without privacy.
        train_loss: Mean loss over the local steps; None under privacy, because no noise is added to it.
        clipped_share: Fraction of examples whose gradients were clipped. It has noise of its own, whose cost is part of
            the update's charge (see `fedsvd.privacy.clipping_statistics`). None if it is not computed.
        mean_grad_norm: Mean norm of the clipped gradients, with noise as for ``clipped_share``; None if it is not
            computed.
        server_round: The round that the report belongs to, so that the server can reject a reply to another round.
        loss: Loss of the client's personalized model after training, without noise, on the run's held-out texts or on a
            real node's ``test-path``; None without such texts, for a shared model, or if the task asks for none.
        metrics: Metrics of the same evaluation, by their keys in `fedsvd.config.task.METRICS_BY_KEY`.
    """

    partition_id: int
    num_examples: int | None
    seconds: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    sample_rate: float | None = None
    steps: int | None = None
    train_loss: float | None = None
    clipped_share: float | None = None
    mean_grad_norm: float | None = None
    server_round: int | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def partition_reply(partition_id: int, reason: str = "") -> RecordDict:
    """Build the content of a client's reply to the partition query, with the reason if it cannot take part."""
    content = declined_reply(reason) if reason else RecordDict()
    content[METRICS] = MetricRecord({"partition-id": partition_id})
    return content


def train_request(task: TrainTask, factors: ArrayRecord) -> RecordDict:
    """Build the content of the server's train message."""
    trains, uplink = [str(part) for part in sorted(task.trains)], [str(part) for part in sorted(task.uplink)]
    config = ConfigRecord(
        {
            "server-round": task.server_round,
            "trains": trains,
            "uplink": uplink,
            "account": task.account,
            "versions": [task.versions[name] for name in VERSIONED],
            "keep": [name in task.keep for name in VERSIONED],
            "base-start": task.base_start,
            "evaluate": task.evaluate,
        }
    )
    return RecordDict({TASK: config, FACTORS: factors})


def read_train_request(content: RecordDict) -> tuple[TrainTask, ArrayRecord]:
    """Read the server's train message on a client.

    Raises:
        PayloadError: If a record or key is missing, a part is unknown, or the request contradicts itself.
    """
    try:
        config, factors = content.config_records[TASK], content.array_records[FACTORS]
        server_round = int(config["server-round"])  # type: ignore[arg-type]
        trains, uplink, account = _parts(config["trains"]), _parts(config["uplink"]), str(config["account"])
        versions = dict(zip(VERSIONED, config["versions"], strict=True))  # type: ignore[arg-type]
        keep = frozenset(name for name, flag in zip(VERSIONED, config["keep"], strict=True) if flag)  # type: ignore[arg-type]
        base_start = int(config["base-start"])  # type: ignore[arg-type]
        evaluate = bool(config["evaluate"])
    except (KeyError, TypeError, ValueError) as error:
        raise PayloadError(
            f"train message is invalid ({error!r}): check that server and clients run the same version of fedsvd."
        ) from error
    if server_round < 1 or not uplink or not uplink <= trains:
        raise PayloadError(
            f"train message for round {server_round} trains {sorted(trains)} and requests {sorted(uplink)}: expected a "
            "round >= 1 and a non-empty subset of the trained parts."
        )
    return TrainTask(server_round, trains, uplink, account, versions, keep, base_start, evaluate), factors  # type: ignore[arg-type]


def train_reply(report: ClientReport, factors: ArrayRecord) -> RecordDict:
    """Build the content of a client's reply."""
    numbers = {key: value for key, value in vars(report).items() if key != "metrics" and value is not None}
    values = {key.replace("_", "-"): value for key, value in numbers.items()}
    values |= {f"{_METRIC}{key}": value for key, value in report.metrics.items()}
    return RecordDict({FACTORS: factors, METRICS: MetricRecord(values)})


def declined_reply(reason: str) -> RecordDict:
    """Build the reply of a client that does not take part in the round."""
    return RecordDict({DECLINED: ConfigRecord({"reason": reason})})


def resend_reply() -> RecordDict:
    """Build the reply of a client whose cache does not contain what the message assumes."""
    content = declined_reply("its cache does not contain the factors that the message assumes; it needs them in full")
    return RecordDict({DECLINED: content.config_records[DECLINED], RESEND: ConfigRecord({"lost": True})})


def asks_resend(content: RecordDict) -> bool:
    """Return whether a client asks for all factors in full."""
    return RESEND in content.config_records


def declined_reason(content: RecordDict) -> str | None:
    """Return why a client declined, or None if it did not decline."""
    record = content.config_records.get(DECLINED)
    return None if record is None else one_line(str(record.get("reason", "no reason given")))


def one_line(text: str) -> str:
    """Return untrusted text as one printable line of limited length, for log lines and messages."""
    line = "".join(character if character.isprintable() else " " for character in text[: 4 * MAX_REASON_LENGTH])
    line = " ".join(line.split())
    return line if len(line) <= MAX_REASON_LENGTH else f"{line[:MAX_REASON_LENGTH]} …"


def read_train_reply(content: RecordDict) -> tuple[ClientReport, ArrayRecord]:
    """Read a client's reply on the server.

    Raises:
        PayloadError: If a record or a number is missing, has the wrong type, or is out of range.
    """
    try:
        record, factors = content.metric_records[METRICS], content.array_records.get(FACTORS, ArrayRecord())
        metrics = {key.removeprefix(_METRIC): value for key, value in record.items() if key.startswith(_METRIC)}
        values = {key.replace("-", "_"): value for key, value in record.items() if not key.startswith(_METRIC)}
        report = ClientReport(**{"num_examples": None, **values, "metrics": metrics})  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise PayloadError(
            f"train reply is invalid ({error!r}): check that server and clients run the same version of fedsvd."
        ) from error
    for key, value in vars(report).items():
        if key != "metrics" and value is not None:
            _check_number(key, value)
    for key, value in report.metrics.items():
        _check_metric(key, value)
    if report.num_examples is not None and not (
        isinstance(report.num_examples, int) and 1 <= report.num_examples <= MAX_NUM_EXAMPLES
    ):
        raise PayloadError(f"num_examples = {report.num_examples!r} is invalid: expected an integer from 1 to 2^40.")
    return report, factors


def _check_number(key: str, value: object) -> None:
    number = _finite(key, value)
    if key in _INTEGERS and type(value) is not int:
        raise PayloadError(f"{key} = {value} is invalid: expected an integer.")
    if (number < 0 and key not in _SIGNED) or (number > 1 and key in _FRACTIONS):
        expected = "a number from 0 to 1" if key in _FRACTIONS else "a number >= 0"
        raise PayloadError(f"{key} = {value} is invalid: expected {expected}.")


def _finite(key: str, value: object) -> float:
    # The exact type is compared because bool is a subclass of int.
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    raise PayloadError(f"{key} is {value if type(value) is float else type(value).__name__}: expected a finite number.")


def _check_metric(key: str, value: object) -> None:
    if key not in METRICS_BY_KEY:
        raise PayloadError(f"metric {one_line(key)!r} is unknown: expected one of {', '.join(METRICS_BY_KEY)}.")
    low, high = METRICS_BY_KEY[key].bounds
    if not low <= _finite(f"metric {key}", value) <= high:
        raise PayloadError(f"metric {key} = {value} is invalid: expected a number from {low:g} to {high:g}.")


def hide_counts(report: ClientReport) -> ClientReport:
    """Return a report without the numbers that disclose the size of the client's data set; ε was rounded up before."""
    return replace(report, num_examples=None, noise_multiplier=None, sample_rate=None)


def _parts(values: object) -> frozenset[Part]:
    if not isinstance(values, list) or not set(values) <= set(PARTS):
        raise ValueError(f"parts = {values!r}: expected a list of {', '.join(PARTS)}")
    return frozenset(part for part in PARTS if part in values)

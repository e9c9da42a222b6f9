"""Messages between server and clients: the only module that knows their keys; `fedsvd.wire.payload` packs arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

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
MAX_REASON_LENGTH = 300
VERSIONED = ("A", "B", "base")
_WHOLE = ("partition_id", "num_examples", "steps", "server_round")
_SHARES, _SIGNED = ("sample_rate", "clipped_share", "accuracy"), ("train_loss",)


@dataclass(frozen=True)
class TrainTask:
    """What the server asks of a client in one round.

    Attributes:
        server_round: 1-based.
        trains: Parts that the client's optimiser moves.
        uplink: Parts to send back, a subset of ``trains``.
        account: Name of the account that a run under client-level privacy keeps, through all its processes; empty
            elsewhere.
        versions: For A, B and the base, the round after which it was last replaced: tells a client whether what it
            holds is that. See `fedsvd.wire.factor_versions`.
        keep: Which of these the client is to hold for later rounds.
        base_start: Columns of the base that the client is taken to hold; what is sent are those after them.
        evaluate: Whether a client with a model of its own is to measure it, once trained, and report that, too: a
            message of its own would start a process of its own.
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
    """The numbers that leave a client beside its factors.

    Attributes:
        partition_id: The client's number.
        num_examples: Size of its data set; treated as public (no noise is added). None where it is secret, too.
        seconds: Time of the local round.
        epsilon: Spent so far at the client's own δ; None without privacy. Computed from public quantities only.
        noise_multiplier: σ of DP-SGD; None without privacy.
        sample_rate: Poisson rate; None without privacy.
        steps: Noisy steps charged so far; None without privacy.
        train_loss: Mean loss over the local steps; None under privacy, because it is not noised.
        clipped_share: Share of examples whose gradients were clipped, with noise of its own, paid for with the update's
            (see `fedsvd.privacy.clipping_statistics`); None where there is none.
        mean_grad_norm: Mean clipped length of the gradients, likewise.
        server_round: The round that it answers, so that an answer to another one can be told.
        accuracy: Of the client's own model on the held-out data, which are nobody's private data, as its training left
            it; None where there is one model for all, or nobody asked.
        loss: Likewise.
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
    accuracy: float | None = None
    loss: float | None = None


def partition_reply(partition_id: int) -> RecordDict:
    """Build the content of a client's answer to the server's query for its partition."""
    return RecordDict({METRICS: MetricRecord({"partition-id": partition_id})})


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
        PayloadError: A record is missing, or a part is not one of A, B and head.
    """
    try:
        config, factors = content.config_records[TASK], content.array_records[FACTORS]
        server_round = int(config["server-round"])  # type: ignore[arg-type]
        trains, uplink, account = _parts(config["trains"]), _parts(config["uplink"]), str(config["account"])
        versions = dict(zip(VERSIONED, config["versions"], strict=True))  # type: ignore[arg-type]
        keep = frozenset(name for name, kept in zip(VERSIONED, config["keep"], strict=True) if kept)  # type: ignore[arg-type]
        base_start = int(config["base-start"])  # type: ignore[arg-type]
        evaluate = bool(config["evaluate"])
    except (KeyError, TypeError, ValueError) as error:
        raise PayloadError(
            f"the train message is not one of fedsvd's: {error!r}. Do both ends run one version?"
        ) from error
    if server_round < 1 or not uplink or not uplink <= trains:
        raise PayloadError(
            f"the server asks to train {sorted(trains)} and to send {sorted(uplink)} in round {server_round}; "
            "rounds count from 1, and what is sent must be trained."
        )
    return TrainTask(server_round, trains, uplink, account, versions, keep, base_start, evaluate), factors  # type: ignore[arg-type]


def train_reply(report: ClientReport, factors: ArrayRecord) -> RecordDict:
    """Build the content of a client's reply."""
    values = {key.replace("_", "-"): value for key, value in vars(report).items() if value is not None}
    return RecordDict({FACTORS: factors, METRICS: MetricRecord(values)})


def declined_reply(reason: str) -> RecordDict:
    """Build the reply of a client that takes no part in this round."""
    return RecordDict({DECLINED: ConfigRecord({"reason": reason})})


def resend_reply() -> RecordDict:
    """Build the reply of a client that does not hold what the server takes it to hold."""
    content = declined_reply("it does not hold what the round builds on, and is sent it in full next time")
    return RecordDict({DECLINED: content.config_records[DECLINED], RESEND: ConfigRecord({"lost": True})})


def asks_resend(content: RecordDict) -> bool:
    """Say whether a client asks to be sent everything in full."""
    return RESEND in content.config_records


def declined_reason(content: RecordDict) -> str | None:
    """Return why a client declined, or None when it did not."""
    record = content.config_records.get(DECLINED)
    return None if record is None else one_line(str(record.get("reason", "it gives no reason")))


def one_line(text: str) -> str:
    """Return what a client says in a form that fits a log: one line, printable, and no longer than it need be."""
    line = "".join(character if character.isprintable() else " " for character in text[: 4 * MAX_REASON_LENGTH])
    line = " ".join(line.split())
    return line if len(line) <= MAX_REASON_LENGTH else f"{line[:MAX_REASON_LENGTH]} …"


def read_train_reply(content: RecordDict) -> tuple[ClientReport, ArrayRecord]:
    """Read a client's reply on the server.

    Raises:
        PayloadError: A record or a number is missing, of the wrong type, or implausible.
    """
    try:
        metrics, factors = content.metric_records[METRICS], content.array_records.get(FACTORS, ArrayRecord())
        values = {key.replace("-", "_"): value for key, value in metrics.items()}
        report = ClientReport(**{"num_examples": None, **values})  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise PayloadError(f"the reply is not one of fedsvd's: {error!r}. Do both ends run one version?") from error
    for key, value in vars(report).items():
        if value is not None:
            _check_number(key, value)
    if report.num_examples is not None and not (
        isinstance(report.num_examples, int) and 1 <= report.num_examples <= MAX_NUM_EXAMPLES
    ):
        raise PayloadError(f"num_examples = {report.num_examples!r}; a whole number from 1 to 2^40 is allowed.")
    return report, factors


def _check_number(key: str, value: object) -> None:
    # An exact type: a bool is an int, too.
    if type(value) is not int and not (type(value) is float and math.isfinite(value)):
        raise PayloadError(f"{key} is {value if type(value) is float else type(value).__name__}, no finite number.")
    if key in _WHOLE and type(value) is not int:
        raise PayloadError(f"{key} = {value} is not a whole number.")
    if (value < 0 and key not in _SIGNED) or (value > 1 and key in _SHARES):
        raise PayloadError(f"{key} = {value} is not possible; it is at least 0{' and at most 1' * (key in _SHARES)}.")


def hide_counts(report: ClientReport) -> ClientReport:
    """Return a report without what tells how many examples a client holds."""
    return replace(report, num_examples=None, noise_multiplier=None, sample_rate=None)


def _parts(values: object) -> frozenset[Part]:
    if not isinstance(values, list) or not set(values) <= set(PARTS):
        raise ValueError(f"parts {values!r}; allowed: {', '.join(PARTS)}")
    return frozenset(part for part in PARTS if part in values)

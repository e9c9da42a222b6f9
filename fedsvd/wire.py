"""What travels between server and clients: the only room that knows message keys and array layouts.

A part of an adapter (A, B or head) travels as one flat float32 array, its tensors end to end in the adapter's order:
few large arrays cross a network several times faster than many small ones. Both ends know the layout from the model
and the configuration, so that a payload carries no shapes that could disagree with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedsvd.adapter import PARTS, Adapter, Part
from fedsvd.errors import PayloadError

FACTORS = "factors"
TASK = "task"
METRICS = "metrics"
DECLINED = "declined"
PARTITION_QUERY = "query.partition"
MAX_NUM_EXAMPLES = 2**40


@dataclass(frozen=True)
class TrainTask:
    """What the server asks of a client in one round.

    Attributes:
        server_round: 1-based.
        trains: Parts that the client's optimiser moves.
        uplink: Parts to send back, a subset of ``trains``.
        account: Name of the account that a run under client-level privacy keeps, through all its processes; empty
            elsewhere.
    """

    server_round: int
    trains: frozenset[Part]
    uplink: frozenset[Part]
    account: str = ""


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
    """

    partition_id: int
    num_examples: int | None
    seconds: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    sample_rate: float | None = None
    steps: int | None = None
    train_loss: float | None = None


def pack(adapter: Adapter, parts: Collection[Part]) -> ArrayRecord:
    """Pack the given parts of an adapter: one flat float32 array each."""
    return ArrayRecord({part: Array(_flatten(adapter.part(part))) for part in PARTS if part in parts})


def unpack(
    record: ArrayRecord, parts: Collection[Part], like: Adapter, device: torch.device
) -> dict[Part, dict[str, Tensor]]:
    """Validate and unpack a payload against the adapter that it must fit.

    Raises:
        PayloadError: Missing or extra parts, wrong dtype or size, or a value that is not finite.
    """
    expected = [part for part in PARTS if part in parts]
    if set(record.keys()) != set(expected):
        raise PayloadError(f"the payload holds {sorted(record.keys())}; exactly {sorted(expected)} are allowed.")
    return {part: _split(record[part], part, like.part(part), device) for part in expected}


def payload_bytes(record: ArrayRecord) -> int:
    """Return the number of bytes of a payload's arrays."""
    return sum(len(array.data) for array in record.values())


def train_request(task: TrainTask, factors: ArrayRecord) -> RecordDict:
    """Build the content of the server's train message."""
    trains, uplink = [str(part) for part in sorted(task.trains)], [str(part) for part in sorted(task.uplink)]
    config = ConfigRecord(
        {"server-round": task.server_round, "trains": trains, "uplink": uplink, "account": task.account}
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
    except (KeyError, TypeError, ValueError) as error:
        raise PayloadError(
            f"the train message is not one of fedsvd's: {error!r}. Do both ends run one version?"
        ) from error
    if server_round < 1 or not uplink or not uplink <= trains:
        raise PayloadError(
            f"the server asks to train {sorted(trains)} and to send {sorted(uplink)} in round {server_round}; "
            "rounds count from 1, and what is sent must be trained."
        )
    return TrainTask(server_round, trains, uplink, account), factors


def train_reply(report: ClientReport, factors: ArrayRecord) -> RecordDict:
    """Build the content of a client's reply."""
    values = {key.replace("_", "-"): value for key, value in vars(report).items() if value is not None}
    return RecordDict({FACTORS: factors, METRICS: MetricRecord(values)})


def declined_reply(reason: str) -> RecordDict:
    """Build the reply of a client that takes no part in this round."""
    return RecordDict({DECLINED: ConfigRecord({"reason": reason})})


def declined_reason(content: RecordDict) -> str | None:
    """Return why a client declined, or None when it did not."""
    record = content.config_records.get(DECLINED)
    return None if record is None else str(record["reason"])


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
        if value is not None and (isinstance(value, list) or not np.isfinite(value)):
            raise PayloadError(f"{key} = {value!r} is not a finite number.")
    if report.num_examples is None and FACTORS in content.array_records:
        raise PayloadError("num_examples is missing beside factors that are to be weighted by it.")
    if report.num_examples is not None and not (
        isinstance(report.num_examples, int) and 1 <= report.num_examples <= MAX_NUM_EXAMPLES
    ):
        raise PayloadError(f"num_examples = {report.num_examples!r}; a whole number from 1 to 2^40 is allowed.")
    return report, factors


def without_sizes(report: ClientReport) -> ClientReport:
    """Return a report without what tells how many examples a client holds."""
    return replace(report, num_examples=None, noise_multiplier=None, sample_rate=None)


def vector_size(adapter: Adapter, parts: Collection[Part]) -> int:
    """Return the number of values that the given parts have together."""
    return sum(tensor.numel() for part in parts for tensor in adapter.part(part).values())


def split_vector(
    vector: np.ndarray, parts: Collection[Part], like: Adapter, device: torch.device
) -> dict[Part, dict[str, Tensor]]:
    """Cut one vector of all parts, in the order in which they travel, into float64 tensors."""
    flat, start = torch.from_numpy(vector).to(device, torch.float64), 0
    result: dict[Part, dict[str, Tensor]] = {}
    for part in (part for part in PARTS if part in parts):
        result[part] = {}
        for name, tensor in like.part(part).items():
            result[part][name] = flat[start : start + tensor.numel()].reshape(tensor.shape)
            start += tensor.numel()
    return result


def _parts(values: object) -> frozenset[Part]:
    if not isinstance(values, list) or not set(values) <= set(PARTS):
        raise ValueError(f"parts {values!r}; allowed: {', '.join(PARTS)}")
    return frozenset(part for part in PARTS if part in values)


def _flatten(tensors: Mapping[str, Tensor]) -> np.ndarray:
    flat = torch.cat([tensor.detach().reshape(-1).to(torch.float32) for tensor in tensors.values()])
    return np.ascontiguousarray(flat.cpu().numpy())


def _split(array: Array, part: str, like: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    size = sum(tensor.numel() for tensor in like.values())
    if array.dtype != "float32" or list(array.shape) != [size]:
        raise PayloadError(
            f"part {part} is {array.dtype} of shape {tuple(array.shape)}; float32 of shape ({size},) is expected. "
            "Do both ends use one model and one rank?"
        )
    try:
        values = array.numpy()
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise PayloadError(f"part {part} cannot be decoded: {error}.") from error
    if values.dtype != np.float32 or values.shape != (size,):
        raise PayloadError(f"part {part} holds {values.dtype} of shape {values.shape}, not what its header says.")
    if not np.isfinite(values).all():
        raise PayloadError(f"part {part} holds {int((~np.isfinite(values)).sum())} values that are not finite.")
    flat = torch.from_numpy(values.copy()).to(device)
    chunks = torch.split(flat, [tensor.numel() for tensor in like.values()])
    return {
        name: chunk.reshape(tensor.shape).to(tensor.dtype)
        for (name, tensor), chunk in zip(like.items(), chunks, strict=True)
    }

"""Conversion between adapters and the arrays of messages.

Each part of an adapter is sent as one flat float32 array: its tensors, concatenated in the adapter's order. A few large
arrays are transferred several times faster than many small ones. Server and clients know the layout from the model and
the configuration, so a payload contains no shapes that could contradict them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedsvd.errors import DivergedUpdateError, PayloadError
from fedsvd.lora.adapter import PARTS, Adapter, Part

# The header that NumPy writes before the numbers of a flat array. It is matched, not parsed: NumPy's reader evaluates
# the header as a Python literal, and fails in many ways on a malicious one.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..(\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n)",
    re.DOTALL,
)


def pack(adapter: Adapter, parts: Collection[Part]) -> ArrayRecord:
    """Pack the given parts of an adapter into one flat float32 array each."""
    return ArrayRecord({part: Array(_flatten(adapter.part(part))) for part in PARTS if part in parts})


def unpack(
    record: ArrayRecord, parts: Collection[Part], like: Adapter, device: torch.device
) -> dict[Part, dict[str, Tensor]]:
    """Validate and unpack a payload.

    Args:
        record: The payload.
        parts: The parts that it must contain.
        like: Adapter with the expected sites and shapes.
        device: Device of the result.

    Raises:
        PayloadError: If parts are missing or unexpected, or a part has the wrong dtype or size, or a value that is not
            finite.
    """
    expected = [part for part in PARTS if part in parts]
    if set(record.keys()) != set(expected):
        raise PayloadError(f"payload contains parts {sorted(record.keys())}: expected exactly {sorted(expected)}.")
    return {part: unpack_sites(record[part], part, _layout(record[part], part, like), device) for part in expected}


def pack_sites(sites: Mapping[str, Tensor], dtype: type[np.generic]) -> Array:
    """Pack one small tensor per site (a rotation, indices) into one flat array, without loss."""
    return Array(np.concatenate([tensor.detach().cpu().numpy().astype(dtype).reshape(-1) for tensor in sites.values()]))


def unpack_sites(array: Array, part: str, like: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Unpack one tensor per site.

    Args:
        array: The concatenated tensors.
        part: Name of the part, for error messages.
        like: By site, a tensor of the expected shape. If it is float64 or int32, so must be the array; for any other
            dtype the array must be float32.
        device: Device of the result.

    Raises:
        PayloadError: If the dtype or size is wrong, or a value is not finite.
    """
    size = sum(tensor.numel() for tensor in like.values())
    lossless = {torch.float64: "float64", torch.int32: "int32"}
    dtype = next((lossless[tensor.dtype] for tensor in like.values() if tensor.dtype in lossless), "float32")
    if array.dtype != dtype or list(array.shape) != [size]:
        raise PayloadError(
            f"part {part} has dtype {array.dtype} and shape {tuple(array.shape)}: expected {dtype} and ({size},); "
            "check that server and clients use the same model and rank."
        )
    values = decode(array, part, dtype, size)
    if not np.isfinite(values).all():
        raise DivergedUpdateError(f"part {part} contains {int((~np.isfinite(values)).sum())} non-finite values.")
    flat = torch.from_numpy(values.copy()).to(device)
    chunks = torch.split(flat, [tensor.numel() for tensor in like.values()])
    return {
        name: chunk.reshape(tensor.shape).to(tensor.dtype)
        for (name, tensor), chunk in zip(like.items(), chunks, strict=True)
    }


def decode(array: Array, part: str, dtype: str, size: int) -> np.ndarray:
    """Read one flat array from untrusted bytes, without a copy.

    Raises:
        PayloadError: If the bytes are not a plain NumPy array (``.npy``) of this dtype and size.
    """
    expected = np.dtype(dtype).newbyteorder("<")
    header = _NPY_HEADER.match(array.data) if array.stype == "numpy.ndarray" else None
    if header is None or len(header[1]) != int.from_bytes(array.data[8:10], "little"):
        raise PayloadError(f"part {part} cannot be decoded: expected a plain one-dimensional NumPy array.")
    body = memoryview(array.data)[header.end() :]
    if (header[2].decode(), int(header[3])) != (expected.str, size) or len(body) != size * expected.itemsize:
        raise PayloadError(
            f"part {part} has a NumPy header with dtype {header[2].decode()} and shape ({int(header[3])},), followed "
            f"by {len(body)} bytes: expected {dtype} and ({size},)."
        )
    return np.frombuffer(body, dtype=expected)


def payload_bytes(record: ArrayRecord) -> int:
    """Return the number of bytes of a payload's arrays."""
    return sum(len(array.data) for array in record.values())


def vector_size(adapter: Adapter, parts: Collection[Part]) -> int:
    """Return the total number of values in the given parts."""
    return sum(tensor.numel() for part in parts for tensor in adapter.part(part).values())


def split_vector(
    vector: np.ndarray, parts: Collection[Part], like: Adapter, device: torch.device
) -> dict[Part, dict[str, Tensor]]:
    """Split the concatenation of all parts, in payload order, into float64 tensors."""
    flat, start = torch.from_numpy(vector).to(device, torch.float64), 0
    result: dict[Part, dict[str, Tensor]] = {}
    for part in (part for part in PARTS if part in parts):
        result[part] = {}
        for name, tensor in like.part(part).items():
            result[part][name] = flat[start : start + tensor.numel()].reshape(tensor.shape)
            start += tensor.numel()
    return result


def _layout(array: Array, part: Part, like: Adapter) -> Mapping[str, Tensor]:
    """Return tensors of a part's shapes; the rank of the base is the only number that must be read from its size."""
    if part not in ("base_left", "base_right"):
        return like.part(part)
    sides = (
        {n: B.shape[0] for n, B in like.B.items()}
        if part == "base_left"
        else {n: A.shape[1] for n, A in like.A.items()}
    )
    size, widths = math.prod(array.shape), sum(sides.values())
    if size % widths:
        raise PayloadError(f"part {part} has {size} values: expected a multiple of {widths}.")
    rank = size // widths
    one = next(iter(like.A.values()))
    return {n: one.new_empty((d, rank) if part == "base_left" else (rank, d), device="meta") for n, d in sides.items()}


def _flatten(tensors: Mapping[str, Tensor]) -> np.ndarray:
    flat = torch.cat([tensor.detach().reshape(-1).to(torch.float32) for tensor in tensors.values()])
    return np.ascontiguousarray(flat.cpu().numpy())

"""Adapters as arrays: the layout of what travels.

A part of an adapter travels as one flat float32 array, its tensors end to end in the adapter's order: few large arrays
cross a network several times faster than many small ones. Both ends know the layout from the model and the
configuration, so that a payload carries no shapes that could disagree with them.
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

# What NumPy writes before the numbers of one flat array. Matched, not parsed: its own reader evaluates the header as a
# Python literal, and fails in many ways on a hostile one.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..(\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n)",
    re.DOTALL,
)


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
    return {part: unpack_sites(record[part], part, _layout(record[part], part, like), device) for part in expected}


def pack_sites(sites: Mapping[str, Tensor], dtype: type[np.generic]) -> Array:
    """Pack one small array a site (rotations, indices) end to end, exactly."""
    return Array(np.concatenate([tensor.detach().cpu().numpy().astype(dtype).reshape(-1) for tensor in sites.values()]))


def unpack_sites(array: Array, part: str, like: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Unpack one tensor a site.

    Args:
        array: The tensors end to end.
        part: Its name, for messages.
        like: By site a tensor of the shape to expect; of float64 or int32 where the array is, else it is float32.
        device: Where to put them.

    Raises:
        PayloadError: Another dtype or size, or a number that is not finite.
    """
    size = sum(tensor.numel() for tensor in like.values())
    exact = {torch.float64: "float64", torch.int32: "int32"}
    dtype = next((exact[tensor.dtype] for tensor in like.values() if tensor.dtype in exact), "float32")
    if array.dtype != dtype or list(array.shape) != [size]:
        raise PayloadError(
            f"part {part} is {array.dtype} of shape {tuple(array.shape)}; {dtype} of shape ({size},) is expected. "
            "Do both ends use one model and one rank?"
        )
    values = decode(array, part, dtype, size)
    if not np.isfinite(values).all():
        raise DivergedUpdateError(f"part {part} holds {int((~np.isfinite(values)).sum())} values that are not finite.")
    flat = torch.from_numpy(values.copy()).to(device)
    chunks = torch.split(flat, [tensor.numel() for tensor in like.values()])
    return {
        name: chunk.reshape(tensor.shape).to(tensor.dtype)
        for (name, tensor), chunk in zip(like.items(), chunks, strict=True)
    }


def decode(array: Array, part: str, dtype: str, size: int) -> np.ndarray:
    """Read one flat array out of its bytes, none of which is trusted, and without a copy.

    Raises:
        PayloadError: Bytes that are not a plain NumPy array (``.npy``) of this type and size.
    """
    wanted = np.dtype(dtype).newbyteorder("<")
    found = _NPY_HEADER.match(array.data) if array.stype == "numpy.ndarray" else None
    if found is None or len(found[1]) != int.from_bytes(array.data[8:10], "little"):
        raise PayloadError(f"part {part} cannot be decoded: its bytes are no plain one-dimensional NumPy array.")
    body = memoryview(array.data)[found.end() :]
    if (found[2].decode(), int(found[3])) != (wanted.str, size) or len(body) != size * wanted.itemsize:
        raise PayloadError(
            f"part {part} holds {found[2].decode()} of shape ({int(found[3])},) in {len(body)} bytes, not what its "
            f"header says: {dtype} of shape ({size},)."
        )
    return np.frombuffer(body, dtype=wanted)


def payload_bytes(record: ArrayRecord) -> int:
    """Return the number of bytes of a payload's arrays."""
    return sum(len(array.data) for array in record.values())


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


def _layout(array: Array, part: Part, like: Adapter) -> Mapping[str, Tensor]:
    """Return tensors of the shapes that a part has; the base's rank is the one number that only its size tells."""
    if part not in ("base_left", "base_right"):
        return like.part(part)
    sides = (
        {n: B.shape[0] for n, B in like.B.items()}
        if part == "base_left"
        else {n: A.shape[1] for n, A in like.A.items()}
    )
    size, widths = math.prod(array.shape), sum(sides.values())
    if size % widths:
        raise PayloadError(f"part {part} has {size} numbers; a multiple of {widths} is expected.")
    rank = size // widths
    one = next(iter(like.A.values()))
    return {n: one.new_empty((d, rank) if part == "base_left" else (rank, d), device="meta") for n, d in sides.items()}


def _flatten(tensors: Mapping[str, Tensor]) -> np.ndarray:
    flat = torch.cat([tensor.detach().reshape(-1).to(torch.float32) for tensor in tensors.values()])
    return np.ascontiguousarray(flat.cpu().numpy())

"""torch's meta device as a stand-in for a GPU: it has shapes and devices, but no values.

An operation on tensors of the meta device and of the CPU raises, as on a GPU. Values that the program reads from the
device, for which a GPU would be waited for, are made up and recorded.
"""

import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
ROOT = Path(__file__).parents[2]


class _Reads(TorchDispatchMode):
    """Answers what is read from the meta device.

    Args:
        found: Counts the reads by the file that asked for them, relative to the project.
        truth: The value of each bool that is read.
    """

    def __init__(self, found: Counter[str], truth: bool) -> None:
        super().__init__()
        self._found = found
        self._truth = truth

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            # Operations arrive whole; as a whole, some raise on the meta device.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        tensor, name = next((a for a in args if isinstance(a, Tensor)), None), func._schema.name
        if tensor is None or tensor.device != META:
            if name == "aten::copy_" and args[1].device == META:
                self._record()
                return tensor
            return func(*args, **kwargs)
        if name == "aten::_local_scalar_dense":
            self._record()
            return self._truth if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1
        if name == "aten::equal":
            self._record()
            return True
        if name == "aten::_to_copy" and kwargs.get("device") == torch.device("cpu"):
            self._record()
            return torch.ones(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)
        return func(*args, **kwargs)

    def _record(self) -> None:
        """Count a read by the innermost frame outside of torch and this file."""
        frames = [Path(frame.filename) for frame in traceback.extract_stack()]
        outside = [path for path in frames if "torch" not in path.parts and path != Path(__file__)]
        path = outside[-1]
        is_own = path.is_relative_to(ROOT) and "site-packages" not in path.parts
        self._found[str(path.relative_to(ROOT)) if is_own else path.name] += 1


@contextmanager
def reads_from_meta(truth: bool = True) -> Iterator[Counter[str]]:
    """Count reads from the meta device in this thread and in those that it starts, inside the context, by file.

    Args:
        truth: The value of each bool that is read.
    """
    found: Counter[str] = Counter()
    start = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with _Reads(found, truth):
            start(thread)

    with (
        pytest.MonkeyPatch.context() as patch,
        fx_config.patch(meta_nonzero_assume_all_nonzero=True),
        _Reads(found, truth),
    ):
        patch.setattr(threading.Thread, "run", run)
        yield found


def use_meta_device(patch: pytest.MonkeyPatch) -> None:
    """Let every configuration's ``device`` be the meta device."""
    from fedsvd.runtime.model import resolve_device

    for module in list(sys.modules.values()):
        if getattr(module, "resolve_device", None) is resolve_device:
            patch.setattr(module, "resolve_device", lambda name: META)
